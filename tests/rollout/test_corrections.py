"""Importance corrections beside rows of every source: the policy's own, hinted, replayed, demonstrations."""

import math

import pytest
import torch

from mmrl.objective import Objective
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, score_right, taught_policy

STRATEGIES = [{"name": "demonstrations", "behaviour": "one"}, "guide", {"name": "replay", "size": 4}]
CORRECTIONS = [
    {"level": "token", "mode": "truncate", "high": 2.0},
    {"level": "token", "mode": "mask"},
    {"level": "sequence", "mode": "truncate", "high": 2.0},
    {"level": "sequence", "mode": "mask"},
    {"level": "geometric", "mode": "mask", "low": 0.5, "high": 2.0},
]


def trainer_of(folder, policy, correction, **changes):
    settings = {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3, "save_every": 0} | changes
    objective = Objective.of({"credit": [{"name": "importance_correction", **correction}] if correction else []})
    told = []
    trainer = Trainer(
        policy, objective, hinted_prompts(2), score_right, TrainingConfig(**settings), folder, rollout=STRATEGIES,
        report=lambda step, metrics: told.append(metrics),
    )  # fmt: skip
    return trainer, told


def test_each_corrects_what_the_engine_wrote_and_leaves_what_it_did_not(tmp_path):
    """The engine is made to have found every token of its own rows less likely by half."""
    trainer, _ = trainer_of(tmp_path, taught_policy(old_log_probs="trainer"), None)
    batch = trainer.collector.collect(0).batch
    given = batch.source > 0
    assert given.any() and (batch.helped & ~given).any(), "demonstrations, and rows that saw a hint"
    sampler = batch["sampler_log_probs"]
    assert torch.allclose(sampler[given], batch.old_log_probs[given]), "nobody's engine wrote them"
    sampler[~given] -= math.log(2.0) * batch.mask[~given]
    plain, _ = trainer.objective.prepare(batch)
    length = batch.mask.sum(1, keepdim=True).double()
    for correction, weight in zip(CORRECTIONS, (2.0, 2.0, 2.0, None, 2.0), strict=True):
        objective = Objective.of({"credit": [{"name": "importance_correction", **correction}]})
        found, _ = objective.prepare(batch)
        if weight is None:  # 2 to the power of the length, dropped above 3
            weight = torch.where(length == 1, 2.0, 0.0)
        expected = torch.where(given[:, None], plain.advantage, weight * plain.advantage)
        torch.testing.assert_close(found.advantage, expected.to(found.advantage), msg=str(correction))


@pytest.mark.learns
@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: f"{c['level']} {c['mode']}")
def test_each_trains_two_steps_beside_all_sources(correction, tmp_path):
    policy = taught_policy(old_log_probs="trainer", share=0.3)
    trainer, told = trainer_of(tmp_path, policy, correction)
    trainer.train()
    steps = [m for m in told if "rollouts" in m]
    assert len(steps) == 2 and all(math.isfinite(m["gradient_norm"]) for m in steps)
    assert any(m["update/moved_fraction"] > 0 for m in steps)
    assert {line["source"] for m in steps for line in m["rows_by_source"]} >= {"policy", "demonstration"}
