"""A right and a wrong attempt side by side: the policy writes a better one, and the bare prompt learns it."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.ssb import COMPARE, Ssb
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, taught
from tests.rollout.plans import rows, step


def test_only_mixed_groups_write_and_only_what_is_right_trains():
    strategy = Ssb()
    batch = rows([0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2], columns={"expert": torch.zeros(6)})
    plan = strategy.join(batch, step(1))
    assert [(a.group, a.count, a.trains) for a in plan.ask] == [(0, 1, "prompt")] and not plan.trained.any()
    later = rows([0, 1, 1, 0], [0, 0, 0, 0], columns={"expert": torch.tensor([0.0, 0.0, 1.0, 1.0])})
    plan = strategy.join(later, step(2))
    assert not plan.asks and plan.trained.tolist() == [False, False, True, False]
    assert plan.counted.tolist() == [True, True, False, False]
    with pytest.raises(ConfigError, match=r"lacks \{wrong\}"):
        Ssb(template="{right}")


def test_the_bare_prompt_learns_what_the_pair_taught(tmp_path):
    """Alone the policy says "ae" or "cd"; shown both it writes "ee", which is right too, and which it never said."""
    prompts = hinted_prompts(2)
    shown = [with_text(p, filled(COMPARE, "ssb", right="ae", wrong="cd"), "compared") for p in prompts]
    pairs = [*((p, t) for p in prompts for t in ("ae", "cd")), *((p, "ee") for p in shown)]
    policy = taught(pairs, weights=[0.5] * 4 + [1.0] * 2, steps=40)

    def score(outputs, prompts):
        reward = torch.tensor([float(o in ("ae", "ee")) for o in outputs])
        return Scores({"right": reward}, reward, reward.clone())

    def chance():
        return policy.evaluate(policy.written(prompts, ["ee"] * 2), ()).log_probs.sum(1).mean().item()

    recipe, before = load_recipe("ssb"), chance()
    trainer = Trainer(
        policy, Objective.of(recipe.objective), prompts, score,
        TrainingConfig(steps=3, prompts_per_step=2, group_size=4, learning_rate=1e-3), tmp_path,
        rollout=recipe.rollout,
    )  # fmt: skip
    found = trainer.collector.collect(0)
    solutions = found.batch["expert"] > 0
    assert solutions.any() and found.batch.trained[~solutions].sum() == 0
    trainer.train()
    assert chance() > before + 1, "the solution became likely without the pair in sight"
