"""A trainer whose policy converses: updates, given rows, trees, evaluation and what is reported."""

import json

import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.objective import Objective
from mmrl.record import LOST
from mmrl.rollout.environments.base import Done, Environment, Here, Observation
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels


class Shows(Environment):
    """A picture, a word and the end; words with an `i` are its undoing."""

    columns = {"patience": -1.0}
    max_turns = 3

    def reset(self, prompt):
        return [prompt.images[0]]

    def step(self, state, output):
        if "i" in output:
            raise ValueError("no i")
        state.append(output)
        if len(state) == 2:
            return Observation.of("Again:", images=[state[0].resize((48, 32))])
        return Observation.of("Once more.", bad="dull") if len(state) == 3 else Done({"patience": 2.0})


def trainer_of(tmp_path, environment=None, **changes):
    policy = make_policy(stop_tokens=list(range(0, 1200, 2)))
    settings = {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3} | changes
    rollout, prompts = settings.pop("rollout", ()), make_prompts(4)
    prompts[0].columns["demonstrations"] = prompts[1].columns["demonstrations"] = ["aeiou"]
    return Trainer(
        policy, Objective.of({}), prompts, score_vowels, TrainingConfig(**settings), tmp_path, rollout=rollout,
        eval_prompts=make_prompts(3), environment=Here(environment or Shows(), ceiling=0.9),
    )  # fmt: skip


def test_two_steps_train_and_are_reported(tmp_path):
    seen = []
    trainer = trainer_of(tmp_path, save_rollouts_every=1)
    trainer.report = lambda step, metrics: seen.append(metrics)
    result = trainer.train()
    assert trainer.checked.worst < 1e-4 and trainer.checked.rows == 8
    first = seen[0]
    assert 0 < first["environment/call_rate"] <= 1 and first["environment/calls_per_row"] > 0
    assert first["environment/observed_columns"] > 0 and first["environment/bad/dull"] > 0
    assert {"calls", "bad_calls", "success"} <= result.after.keys()
    rows = [json.loads(line) for line in (tmp_path / "rollouts/step-000001/rows.jsonl").read_text().splitlines()]
    spoken = next(row for row in rows if "said" in row)
    assert [part["who"] for part in spoken["said"][:2]] == ["policy", "environment"]
    assert "Again:" in spoken["said"][1]["text"] and "<|image_pad|> x " in spoken["said"][1]["text"]
    assert len(spoken["actions"]) == spoken["length"] < spoken["extent"]


def test_the_same_run_twice_is_the_same(tmp_path):
    runs = []
    for name in ("a", "b"):
        trainer = trainer_of(tmp_path / name, steps=1)
        trainer.train()
        runs.append(torch.cat([p.flatten() for p in trainer.policy.module.parameters()]))
    assert torch.equal(*runs)


def test_lost_rows_are_out_of_baseline_and_loss(tmp_path):
    trainer = trainer_of(tmp_path, prompts_per_step=4, group_size=6)
    collected = trainer.collector.collect(0)
    lost = torch.tensor([why.startswith(LOST) for why in collected.rollouts.finish])
    assert 0 < lost.sum() < len(lost)
    assert collected.causes["environment: ValueError: no i"] == lost.sum()
    at = collected.mine[lost]
    assert not collected.batch.trained[at].any() and not collected.batch.counted[at].any()
    assert collected.batch.reward[at].isnan().all()


def test_given_rows_stand_beside_conversations(tmp_path):
    trainer = trainer_of(tmp_path, rollout="demonstrations")
    collected = trainer.collector.collect(0)
    given = collected.rollouts.source > 0
    assert given.any() and (collected.rollouts.columns["calls"][given] == 0).all()
    assert (collected.rollouts.columns["patience"][given] == -1).all()
    trainer.train_step()


def test_a_tree_may_split_within_the_first_run_only(tmp_path):
    class Says(Shows):
        def step(self, state, output):
            state.append(output)
            return Observation.of("go on") if len(state) < 4 else Done()

    with pytest.raises(PolicyError, match="cannot start behind what an environment showed"):
        for step in range(4):
            trainer_of(tmp_path, Says(), rollout={"name": "branching", "at": [4]}).collector.collect(step)
