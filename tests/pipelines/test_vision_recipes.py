"""Recipes of vision papers with the rewards of their papers, on a tiny policy that half knows the answer."""

import pytest
import torch

from mmrl.objective import Objective
from mmrl.recipes import load_recipe
from mmrl.rewards.panel import RewardPanel
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rewards.models.http import serving
from tests.rollout.hinted import taught
from tests.training.tiny import make_prompts


def trained(policy, recipe, prompts, rewards, folder, steps=2):
    """(first batch, metrics of the steps) of a recipe as it is shipped."""
    known, metrics = load_recipe(recipe), []
    settings = TrainingConfig(steps=steps, prompts_per_step=len(prompts), group_size=8, learning_rate=1e-3)
    with RewardPanel(rewards) as panel:
        trainer = Trainer(
            policy, Objective.of(known.objective), prompts, panel.score, settings, folder, rollout=known.rollout,
            report=lambda step, values: metrics.append(values),
        )  # fmt: skip
        batch = trainer.collector.collect(0).batch
        trainer.train()
    return batch, [m for m in metrics if "gradient_norm" in m]


def answered(prompts, texts, **changes):
    """A policy that gives each of `texts` equally often."""
    return taught([(p, text) for p in prompts for text in texts], steps=40, max_new_tokens=24, **changes)


def test_gui_libra(tmp_path):
    """Clicks inside and outside of the button: the shipped reward tells them apart, and the recipe learns which."""
    prompts = make_prompts(2)
    for prompt in prompts:
        prompt.columns |= {"solution": '{"action": "click", "bbox": [10, 10, 20, 20]}', "task": "gui"}
    policy = answered(prompts, ["click(15, 15)", "click(90, 90)"])

    def chance():
        return policy.written(prompts, ["click(15, 15)"] * 2).old_log_probs.sum(1).exp().mean().item()

    before = chance()
    batch, steps = trained(policy, "gui_libra", prompts, [{"name": "gui"}], tmp_path, steps=3)
    assert set(batch.success.tolist()) == {0.0, 1.0} and all(m["gradient_norm"] > 0 for m in steps)
    assert chance() > before


def test_q_hawkeye(tmp_path):
    """Ratings of 2 and 5 where 5 is true: both components are there, and where ratings differ the advantage shrinks."""
    prompts = make_prompts(2)
    for prompt in prompts:
        prompt.columns["solution"] = 5.0
    policy = answered(prompts, ["<answer>5</answer>", "<answer>2</answer>"])
    batch, steps = trained(policy, "q_hawkeye", prompts, [{"name": "q_hawkeye"}], tmp_path)
    assert {2.0, 5.0} <= set(batch.components["q_hawkeye/predicted_score"].tolist())
    assert steps[0]["credit/q_hawkeye_uncertainty/reweighted"] > 0 and steps[0]["gradient_norm"] > 0


def test_perceval(tmp_path):
    """A judge behind an address flags "red"; its tokens lose a tenth of their absolute advantage, others nothing."""
    prompts = make_prompts(2)
    for prompt in prompts:
        prompt.columns |= {"solution": "yes", "task": "exact"}
    policy = answered(prompts, ["a red, yes", "yes"])
    reply = {"choices": [{"message": {"content": '<answer>["red"]</answer>'}}]}
    with serving(lambda body, number: reply) as (url, asked):
        judge = {
            "name": "perceval", "weight": 0, "columns": ["flagged_tokens"], "isolated": False,
            "options": {"url": url, "model": "m"},
        }  # fmt: skip
        batch, steps = trained(policy, "perceval", prompts, ["accuracy", judge], tmp_path)
    flagged = batch["flagged_tokens"] > 0
    assert asked.bodies and flagged.any() and not (flagged & ~batch.mask).any()
    assert all(m["gradient_norm"] > 0 for m in steps) and steps[0]["credit/perceval/reweighted"] > 0
    assert torch.isfinite(batch.reward).all()


@pytest.mark.parametrize("name", ["gui_libra", "q_hawkeye", "perceval"])
def test_the_recipe_says_which_reward_it_comes_with(name):
    assert f"name: {name}" in load_recipe(name).summary
