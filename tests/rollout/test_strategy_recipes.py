"""Recipes that bring a strategy, as they are shipped, for a step on a tiny policy that rarely answers right."""

import json
import math

import pytest
import torch

from mmrl.objective import Objective
from mmrl.recipes import load_recipe
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, score_right, taught_policy

SIGNAL = ["guide", "visurf", "easyvideor1", "npo", "ampo", "tgrl", "dypo", "grao", "otr", "expo"]
"""Of these, right rows come from elsewhere, so that the step has something to learn."""
OTHERS = [
    *("ghpo", "sage", "hill", "igrpo", "fission_grpo", "dars", "cure", "treepo", "reflectdrive_2"),
    *("replay", "remix_off_policy", "srpo", "sdpo", "calibrl", "brorl"),
]


@pytest.fixture(scope="module")
def taught():
    policy = taught_policy()
    return policy, {k: v.clone() for k, v in policy.trainable_state().items()}


NEW = ["props", "expo_expressive", "agent_rlvr", "svs", "hnpg", "metaclaw"]


def trained(name, taught, folder, steps=1, resume=None, **changes):
    """A trainer of the recipe that has made its steps, from the taught weights, and the metrics of each."""
    policy, state = taught
    policy.load_trainable_state({k: v.clone() for k, v in state.items()})
    recipe, metrics = load_recipe(name), []
    settings = TrainingConfig(steps=steps, prompts_per_step=2, group_size=4, learning_rate=3e-4, **changes)
    trainer = Trainer(
        policy, Objective.of(recipe.objective), hinted_prompts(2), score_right, settings, folder,
        rollout=recipe.rollout, report=lambda step, values: metrics.append(values),
    )  # fmt: skip
    trainer.train(resume)
    return trainer, [m for m in metrics if "rollouts" in m]


@pytest.mark.parametrize("name", [*SIGNAL, *OTHERS])
def test_a_recipe_trains(name, taught, tmp_path):
    _, (step,) = trained(name, taught, tmp_path)
    assert math.isfinite(step["gradient_norm"]) and step["rollouts"] >= 8
    moved = any(not torch.equal(v, taught[1][k]) for k, v in taught[0].trainable_state().items())
    assert moved or name not in SIGNAL, "the right rows that were brought have taught something"


@pytest.mark.learns
@pytest.mark.parametrize("name", [*SIGNAL, *OTHERS, *NEW])
def test_a_resumed_run_is_the_run_that_went_on(name, taught, tmp_path):
    whole, steps = trained(name, taught, tmp_path / "whole", 2, save_every=1)
    weights = {k: v.clone() for k, v in whole.policy.trainable_state().items()}
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000001"
    resumed, again = trained(name, taught, tmp_path / "part", 2, checkpoint, save_every=1)
    assert json.dumps(whole.strategies.state_dict()) == json.dumps(resumed.strategies.state_dict())
    assert again[-1]["reward/mean"] == steps[-1]["reward/mean"]
    assert again[-1]["rows_by_source"] == steps[-1]["rows_by_source"]
    for weight, value in weights.items():
        assert torch.equal(value, resumed.policy.trainable_state()[weight]), weight
