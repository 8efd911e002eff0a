"""Methods that tell turns apart, on conversations that have several: the turns of one rollout get unlike credit."""

import json

import pytest
import torch

from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import train
from mmrl.recipes import load_recipe
from mmrl.rollout.environments.base import Here
from mmrl.rollout.environments.opening import environment_of
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import taught
from tests.training.tiny import make_prompts, score_vowels

CALL, ANSWER = '<planning><tool>{"expression": "1+1"}</tool>', "ae"
METHODS = ["gigpo", "salt", "graph_grpo", "rlvmr"]


@pytest.fixture(scope="module")
def caller():
    """Calls a tool about every other time, and answers at once otherwise."""
    prompts = make_prompts(2)
    pairs = [(p, text) for p in prompts for text in (CALL, ANSWER)]
    policy = taught(pairs, steps=40, max_new_tokens=48)
    return policy, {k: v.clone() for k, v in policy.trainable_state().items()}


def trainer_of(name, caller, folder):
    policy, state = caller
    policy.load_trainable_state({k: v.clone() for k, v in state.items()})
    recipe = load_recipe(name)
    settings = TrainingConfig(steps=1, prompts_per_step=2, group_size=8, learning_rate=1e-4, save_every=0)
    return Trainer(
        policy, Objective.of(recipe.objective), make_prompts(2), score_vowels, settings, folder,
        rollout=recipe.rollout, environment=Here(environment_of(recipe.environment or "toolbox").state),
    )  # fmt: skip


def spread(trainer) -> tuple[int, float]:
    """Rows of several turns, and the largest difference between the mean credit of two turns of one."""
    collected = trainer.collector.collect(0)
    batch, _ = trainer.objective.prepare(collected.batch)
    turn, apart, several = batch["turn"], 0.0, 0
    for row in range(len(turn)):
        numbers = torch.unique(turn[row][batch.mask[row]]).tolist()
        means = [float(batch.advantage[row][batch.mask[row] & (turn[row] == n)].mean()) for n in numbers]
        several += len(numbers) > 1
        apart = max(apart, max(means) - min(means))
    return several, apart


@pytest.mark.learns
@pytest.mark.parametrize("name", [*METHODS, "grpo"])
def test_turns_of_one_rollout_are_told_apart(name, caller, tmp_path):
    trainer = trainer_of(name, caller, tmp_path)
    several, apart = spread(trainer)
    assert several >= 2, "conversations of several turns"
    assert (apart > 1e-3) == (name != "grpo"), f"{name}: {apart}"
    trainer.train()
    assert any(not torch.equal(v, caller[1][k]) for k, v in trainer.policy.trainable_state().items())


@pytest.mark.learns
@pytest.mark.parametrize("name", METHODS)
def test_the_model_that_zooms_trains_with_each(name, tmp_path):
    """The shipped model looks closer by itself now and then."""
    told: list[dict] = []
    environment = {"name": "tagged_tools" if name == "rlvmr" else "toolbox", "side": 64, "max_turns": 2}
    sizes = {"steps": 1, "prompts_per_step": 8, "group_size": 16, "eval_every": 0, "save_every": 0}
    changes = [f"recipe={name}", f"run_dir={tmp_path / 'run'}", f"environment={json.dumps(environment)}",
               "data.eval=null", "data.workers=0", *(f"training.{k}={v}" for k, v in sizes.items())]  # fmt: skip
    config = read_config("zoom", changes, "vlm")
    train(config, report=lambda step, metrics: told.append(metrics))
    assert told[0]["environment/call_rate"] > 0 and told[0]["gradient_norm"] > 0
