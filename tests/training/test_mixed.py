"""Rows of two kinds of actions in a run: what each kind's objective makes of them, and a resume."""

from __future__ import annotations

from pathlib import Path

import torch

from mmrl.batch import KINDS
from mmrl.objective import Objective
from mmrl.record import Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from mmrl.training.updates import Updates
from tests.training.tiny import make_policy, make_prompts, score_vowels

STEP = KINDS.index("transition")
MIXED = {
    "kinds": {
        "tokens": {"credit": [{"name": "80_20_forking_tokens"}]},
        "transition": {"coefficient": 0.5, "aggregation": "sequence_mean", "credit": []},
    }
}


def score_parts(outputs, prompts) -> Scores:
    """The second half of each text counts as actions of another kind."""
    scores = score_vowels(outputs, prompts)
    scores.columns = {"kind": [[[len(text) // 2, len(text), STEP]] if len(text) > 1 else [] for text in outputs]}
    return scores


def run(folder: Path, steps: int, resume: Path | None = None, **objective) -> tuple[dict, list[dict]]:
    policy, metrics = make_policy(), []
    Trainer(
        policy, Objective.of({**MIXED, **objective}), make_prompts(8), score_parts,
        TrainingConfig(steps=steps, prompts_per_step=4, group_size=4, learning_rate=1e-3, save_every=1,
                       updates=Updates(count=2), micro_batch_size=5),
        folder, report=lambda step, values: metrics.append(values),
    ).train(resume)  # fmt: skip
    return policy.trainable_state(), metrics


def test_each_kind_trains_by_its_own_objective_and_a_resume_is_exact(tmp_path):
    state, metrics = run(tmp_path / "whole", 2)
    for values in metrics:
        assert values["gradient_norm"] > 0 and values["trust_region/acted"] >= 0
        assert {"tokens/ratio/gap", "transition/ratio/gap", "ratio/gap"} <= set(values)
    assert "tokens/credit/80_20_forking_tokens/silenced" in metrics[0]
    assert not any(name.startswith("transition/credit") for name in metrics[0])
    again, _ = run(tmp_path / "again", 2, tmp_path / "whole" / "checkpoints" / "step-000001")
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    silent = dict(MIXED["kinds"], transition={**MIXED["kinds"]["transition"], "coefficient": 0.0})
    other, _ = run(tmp_path / "silent", 2, kinds=silent)
    assert any(not torch.equal(value, other[name]) for name, value in state.items())
