"""A learner without optimizer steps: the strategy remembers, and a resumed run remembers the same."""

import json

import torch

from mmrl.objective import Objective
from mmrl.training.config import TrainingConfig
from mmrl.training.frozen import FrozenTrainer
from tests.training.tiny import make_policy, make_prompts, score_vowels


def trainer(folder, steps):
    policy = make_policy(max_new_tokens=2)
    settings = TrainingConfig(steps=steps, prompts_per_step=2, group_size=2, save_every=2)
    told = []
    made = FrozenTrainer(policy, Objective.of({}), make_prompts(2), score_vowels, settings, folder,
                         rollout=[{"name": "contextevolve", "count": 2}],
                         report=lambda step, metrics: told.append(metrics))  # fmt: skip
    return made, told


def test_nothing_moves_and_a_resumed_memory_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole, said = trainer(tmp_path / "whole", 3)
    before = {n: t.clone() for n, t in whole.policy.trainable_state().items()}
    whole.train()
    assert all(torch.equal(t, before[n]) for n, t in whole.policy.trainable_state().items())
    assert whole.updates == 0 and said[0]["gradient_norm"] == 0
    assert sum(row["rows"] for row in said[0]["rows_by_source"] if "more" in row["saw"]) == 0
    assert sum(row["rows"] for row in said[1]["rows_by_source"] if "more" in row["saw"]) == 4, "answered before"
    half, _ = trainer(tmp_path / "half", 2)
    half.train()
    again, rest = trainer(tmp_path / "half", 3)
    again.train(resume=tmp_path / "half" / "checkpoints" / "step-000002")
    known = [json.dumps(t.collector.strategies.state_dict()) for t in (whole, again)]
    assert known[0] == known[1]
    assert [m["reward/mean"] for m in rest] == [m["reward/mean"] for m in said[2:]]
