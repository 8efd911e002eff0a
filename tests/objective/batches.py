"""Random batches that fill every need of any registered function, for the property tests."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective import Objective
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound, StageFunction

ROWS, WIDTH = 13, 7
GROUPS = [4, 4, 4, 7, 7, 7, 7, 9, 9, 9, 9, 9, 2]
"""Ragged groups in no order, one of a single member."""

PER_ROW = {
    "visual_entropy",
    "reference_value",
    "score_gradient_norm",
    "final_token_log_prob",
    "policy_drift",
}
COMPONENTS = ("accuracy", "coverage", "ranking", "format")


def random_batch(seed: int = 0, rows: int = ROWS, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> Batch:
    """Unequal lengths, a row with a hole, continuous rewards, binary success, several components."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    mask = torch.arange(width)[None, :] < lengths[:, None]
    mask[1] = torch.tensor([True, False] + [True] * (width - 2))
    group = torch.tensor((GROUPS * (rows // len(GROUPS) + 1))[:rows])
    old = -torch.rand(rows, width, generator=g, dtype=torch.float64) * 2 - 0.1
    success = torch.randint(0, 2, (rows,), generator=g).double()
    success[0], success[1] = 1.0, 0.0
    return Batch(
        mask=mask,
        old_log_probs=(old * mask).to(dtype),
        group=group,
        prompt=group + 1000,
        reward=(0.1 + 0.8 * torch.rand(rows, generator=g, dtype=torch.float64)).to(dtype),
        success=success.to(dtype),
        components={n: torch.rand(rows, generator=g, dtype=torch.float64).to(dtype) for n in COMPONENTS},
        actions=torch.randint(0, 5, (rows, width), generator=g) * mask,
        truncated=lengths == width,
        max_length=width + 3,
        step=300,
        steps=1000,
        seed=5,
    )


def near(batch: Batch, seed: int = 1, spread: float = 0.3) -> Tensor:
    """(B, T) current log-probs, a little away from the old ones, with gradient."""
    g = torch.Generator().manual_seed(seed)
    step = spread * torch.randn(batch.mask.shape, generator=g, dtype=torch.float64)
    return ((batch.old_log_probs.double() + step) * batch.mask).to(batch.old_log_probs.dtype).requires_grad_()


def column(name: str, batch: Batch, seed: int) -> Tensor:
    """Something plausible for a declared column."""
    rows, width = batch.mask.shape
    dtype = batch.old_log_probs.dtype
    g = torch.Generator().manual_seed(seed + sum(map(ord, name)))
    noise = torch.rand(rows, width, generator=g, dtype=torch.float64).to(dtype)
    if name == "segment":
        return torch.where(batch.mask, (batch.mask.long().cumsum(1) - 1) // 2, -1)
    if name == "expert":
        return torch.arange(rows) % 4 == 3
    if name == "reordered":
        return (torch.arange(rows) % 3 == 2).to(dtype)
    if name == "greedy_success":
        return (batch.group % 2).to(dtype)
    if name in ("branch", "hint"):
        return torch.arange(rows) % 2
    if name == "proposes":  # group 7 writes, and group 9 solves what its second member wrote
        return (batch.group == 7).to(dtype)
    if name in ("proposal_group", "proposal_member"):
        return torch.where(batch.group == 9, 7 if name == "proposal_group" else 1, -1).to(dtype)
    if name == "episode":  # every second member goes on with the one before
        return torch.where(batch.member % 2 == 1, batch.member - 1, -1).to(dtype)
    if name == "sub":
        return (batch.member % 2).to(dtype)
    if name == "preferred":
        return (batch.member % 2 == 0).to(dtype)
    if name.startswith("preference_"):
        return 4 * noise[:, 0] - 2
    if name == "begins":
        return torch.arange(rows) % 3
    if name == "answer":
        return torch.arange(rows) % 3
    if name in ("kept_log_probs", "gumbels"):
        return -torch.rand(rows, width, 3, generator=g, dtype=torch.float64).to(dtype) - 0.5
    if name in PER_ROW:
        return noise[:, 0] + 0.5
    if "log_prob" in name:
        return (batch.old_log_probs + 0.4 * (noise - 0.5)) * batch.mask
    return noise * batch.mask


def fill(batch: Batch, bounds: list[Bound], seed: int = 7) -> tuple[Batch, dict[str, Tensor]]:
    """The batch with every column these functions declare or require, and the columns of the evaluation.

    Text hyper-parameters may name reward components, so there is one of each such name.
    """
    current: dict[str, Tensor] = {}
    for bound in bounds:
        for value in bound.spec.defaults.values():
            if isinstance(value, str):
                batch.components.setdefault(value, column(f"component {value}", batch, seed).sum(1))
        for name, need in bound.needs.items():
            if name in batch.columns:
                continue
            values = column(need.probe, batch, seed + sum(map(ord, need.key)))
            (current if need.weights == "current" else batch.columns)[need.key] = values
        for name in bound.columns:
            if getattr(batch, name, None) is None and name not in batch.columns:
                batch.columns[name] = column(name, batch, seed)
    return batch, current


def objective_with(function: StageFunction) -> Objective:
    """A small objective in which this function plays its stage."""
    choice = {"name": function.name, **PARAMETERS.get((function.stage, function.name), {})}
    config: dict = {"advantage": "grpo"}
    if function.stage in ("shaping", "group", "credit"):
        config[function.stage] = [choice]
    elif function.stage == "regularizer":
        config["regularizers"] = [{**choice, "coefficient": 0.3}]
    elif function.stage == "score":
        objective = "disco" if function.name == "disco" else "pacs"
        config |= {"score": choice, "score_objective": objective}
    elif function.stage == "score_objective":
        config |= {"score": "disco" if function.name == "disco" else "log_ratio", "score_objective": choice}
    else:
        config[function.stage] = choice
    return Objective.of(config)


PARAMETERS: dict[tuple[str, str], dict] = {
    ("ratio", "segment"): {"separators": [0, 3]},
    ("trust_region", "sspo"): {"separators": [0, 3]},
    ("regularizer", "otr"): {"rows": "all"},
    ("shaping", "recap"): {"objectives": ["accuracy", "format"]},
    ("credit", "atlas_la_grpo"): {"tokens": [1, 3]},
    ("credit", "dynframe_sd_grpo"): {"marker": [1]},
    ("shaping", "searchllm"): {"gates": {"format": 0.5}, "objectives": {"accuracy": 1.0}},
    ("shaping", "rubric_anchors"): {"weights": {"accuracy": 1.0, "coverage": 0.5}, "vetoes": {"format": 0.2}},
    ("shaping", "progressive_stages"): {
        "stages": [{"component": "format", "threshold": 0.5}, {"component": "accuracy"}],
    },
}
"""Hyper-parameters without which a function refuses to run."""


def evaluation_of(log_probs: Tensor, columns: dict[str, Tensor]) -> Evaluation:
    return Evaluation(log_probs, dict(columns))
