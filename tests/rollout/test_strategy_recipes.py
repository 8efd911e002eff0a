"""Recipes that bring a strategy, as they are shipped, for a step on a tiny policy that rarely answers right."""

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
    *("ghpo", "sage", "hill", "igrpo", "fission_grpo", "dars", "cure", "treepo"),
    *("replay", "remix_off_policy", "srpo", "sdpo", "calibrl", "brorl"),
]


@pytest.fixture(scope="module")
def taught():
    policy = taught_policy()
    return policy, {k: v.clone() for k, v in policy.trainable_state().items()}


@pytest.mark.parametrize("name", [*SIGNAL, *OTHERS])
def test_a_recipe_trains(name, taught, tmp_path):
    policy, state = taught
    policy.load_trainable_state({k: v.clone() for k, v in state.items()})
    recipe, metrics = load_recipe(name), []
    settings = TrainingConfig(steps=1, prompts_per_step=2, group_size=4, learning_rate=3e-4)
    Trainer(
        policy, Objective.of(recipe.objective), hinted_prompts(2), score_right, settings, tmp_path,
        rollout=recipe.rollout, report=lambda step, values: metrics.append(values),
    ).train()  # fmt: skip
    (step,) = [m for m in metrics if "rollouts" in m]
    assert math.isfinite(step["gradient_norm"]) and step["rollouts"] >= 8
    moved = any(not torch.equal(v, state[k]) for k, v in policy.trainable_state().items())
    assert moved or name not in SIGNAL, "the right rows that were brought have taught something"
