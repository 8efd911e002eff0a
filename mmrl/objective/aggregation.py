"""Stage 9: weights (B, T) that hold every denominator; `loss = -(weights * objective).sum()`.

A function receives the trained rows of one optimizer step, gathered from all ranks, and divides by
`batch.loss_mask`. Rows whose loss mask is empty are not counted unless it says so.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.numerics import at_least_float32
from mmrl.record import Batch
from mmrl.stages import stage


def loss_weights(batch: Batch) -> Tensor:
    """(B, T) the loss mask as numbers, in the precision of the log-probs (float32 for half)."""
    return batch.loss_mask.to(at_least_float32(batch.old_log_probs).dtype)


def sequence_count(batch: Batch, empty: str = "exclude") -> Tensor:
    """Number of sequences a mean divides by, at least 1."""
    if empty not in ("exclude", "count"):
        raise ConfigError(f"empty is {empty!r}; expected 'exclude' or 'count'")
    rows = loss_weights(batch).sum(1)
    return (rows > 0).sum().clamp(min=1) if empty == "exclude" else rows.new_tensor(max(len(batch), 1))


def length_limit(batch: Batch, length: int | None) -> int:
    """The run's constant limit on T."""
    length = length or batch.max_length
    if not length:
        raise ConfigError(
            "aggregation 'constant' divides by the run's maximum length: set `max_length` of the batch, or "
            "`{name: constant, length: ...}`; never the longest row of a batch"
        )
    return length


@stage(
    "aggregation",
    method="dapo",
    paper="DAPO, arXiv 2503.14476",
    formula="w_it = m_it / sum(m) over the optimizer step",
    scope="update",
)
def token_mean(batch: Batch) -> Tensor:
    """Every action weighs the same, over the global batch. Returns (B, T) that add up to 1."""
    weights = loss_weights(batch)
    return weights / weights.sum().clamp(min=1e-12)


@stage(
    "aggregation",
    method="grpo",
    paper="DeepSeekMath (GRPO), arXiv 2402.03300",
    formula="w_it = m_it / (N L_i), N = number of non-empty sequences",
    scope="update",
)
def sequence_mean(batch: Batch, *, empty: Literal["exclude", "count"] = "exclude") -> Tensor:
    """Mean over the sequence, then over sequences. Returns (B, T).

    empty  whether a fully masked sequence counts in N: TRL counts it, verl and we do not
    """
    weights = loss_weights(batch)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12) / sequence_count(batch, empty)


@stage(
    "aggregation",
    method="dr_grpo",
    paper="Understanding R1-Zero-like training (Dr.GRPO), arXiv 2503.20783",
    formula="w_it = m_it / (N L_max), L_max a constant of the run",
    scope="update",
)
def constant(batch: Batch, *, length: int | None = None, empty: Literal["exclude", "count"] = "exclude") -> Tensor:
    """Divide by a constant length, so that long wrong answers are not excused. Returns (B, T).

    length  L_max; None: the run's `max_length`. Doubling it halves the loss
    empty   as in `sequence_mean`
    """
    return loss_weights(batch) / (sequence_count(batch, empty) * length_limit(batch, length))
