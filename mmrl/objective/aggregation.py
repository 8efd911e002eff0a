"""Stage 9: weights (B, T) that hold every denominator; `loss = -(weights * objective).sum()`.

A function receives the trained rows of one optimizer step, gathered from all ranks, and divides by
`batch.loss_mask`. Rows whose loss mask is empty are not counted unless it says so.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.errors import ConfigError
from mmrl.objective.groups import group_count, group_sum
from mmrl.objective.numerics import at_least_float32, labels, row_advantage, segment_sum
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
    confidence="verified",
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
    confidence="verified",
    scope="update",
)
def sequence_mean(batch: Batch, *, empty: Literal["exclude", "count"] = "exclude", by_length: bool = False) -> Tensor:
    """Mean over the sequence, then over sequences. Returns (B, T).

    empty      whether a fully masked sequence counts in N: TRL counts it, verl and we do not
    by_length  divide once more by the sequence's length, for ratios of whole sequences that are not normalised
               themselves (GDPO for diffusion language models)
    """
    weights = loss_weights(batch)
    length = weights.sum(1, keepdim=True).clamp(min=1e-12)
    mean = weights / length / sequence_count(batch, empty)
    return mean / length if by_length else mean


@stage(
    "aggregation",
    method="dr_grpo",
    paper="Understanding R1-Zero-like training (Dr.GRPO), arXiv 2503.20783",
    formula="w_it = m_it / (N L_max), L_max a constant of the run",
    confidence="verified",
    scope="update",
)
def constant(batch: Batch, *, length: int | None = None, empty: Literal["exclude", "count"] = "exclude") -> Tensor:
    """Divide by a constant length, so that long wrong answers are not excused. Returns (B, T).

    length  L_max; None: the run's `max_length`. Doubling it halves the loss
    empty   as in `sequence_mean`
    """
    return loss_weights(batch) / (sequence_count(batch, empty) * length_limit(batch, length))


@stage(
    "aggregation",
    "segment_mean",
    method="f_grpo",
    paper="F-GRPO (factorized), arXiv 2605.12995",
    formula="w_it = m_it / (N |segment of t in i|)",
    confidence="verified",
    scope="update",
    needs=("segment",),
)
def by_segment(batch: Batch, *, empty: Literal["exclude", "count"] = "exclude") -> Tensor:
    """Mean inside each segment, added over the segments of a sequence, mean over sequences. Returns (B, T).

    empty  as in `sequence_mean`

    Reads `segment (B, T)`; each phase, turn or sentence weighs the same, however long. One segment is `sequence_mean`.
    """
    weights, segment = loss_weights(batch), batch["segment"]
    size = segment_sum(weights, segment, batch.mask)
    return weights * (segment >= 0) / size.clamp(min=1e-12) / sequence_count(batch, empty)


@stage(
    "aggregation",
    method="rloo",
    paper="Back to Basics (RLOO), arXiv 2402.14740; LUSPO (TRL)",
    formula="w_it = m_it / N",
    confidence="verified",
    scope="update",
)
def sequence_sum(batch: Batch, *, empty: Literal["exclude", "count"] = "exclude") -> Tensor:
    """Sum over the sequence, mean over sequences. Returns (B, T).

    empty  as in `sequence_mean`

    On a sequence-constant objective each row weighs its length (LUSPO).
    """
    return loss_weights(batch) / sequence_count(batch, empty)


@stage(
    "aggregation",
    paper="TRL loss type bnpo, 2025",
    formula="w_it = m_it / (chunks sum(m of the chunk))",
    confidence="verified",
    scope="update",
)
def bnpo(batch: Batch, *, rows: int | None = None) -> Tensor:
    """Token mean inside each chunk of rows, mean over chunks: TRL's mean over the local micro-batch. Returns (B, T).

    rows  of a chunk, in batch order; None: one chunk, which is `token_mean`

    Depends on the order of rows; here for comparison, not for use.
    """
    weights = loss_weights(batch)
    chunks = weights.split(rows or max(len(batch), 1))
    return torch.cat([c / c.sum().clamp(min=1) for c in chunks]) / len(chunks)


@stage(
    "aggregation",
    method="dcpo_clipping",
    paper="DCPO: only token mean, arXiv 2509.02333",
    formula="w_it = m_it / L_i, summed over sequences",
    confidence="verified",
    scope="update",
)
def only_token_mean(batch: Batch) -> Tensor:
    """Mean over the sequence, summed over sequences. Returns (B, T). The loss grows with the batch.

    The authors' code, called on a whole micro-batch, is a plain token mean instead.
    """
    weights = loss_weights(batch)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


@stage(
    "aggregation",
    method="balanced_aggregation",
    paper="Balanced Aggregation, arXiv 2605.04077",
    formula="w_it = m_it n_s(i) / (n T_s(i) P); s sign of the advantage, T_s its tokens, n_s its rows, P prompts",
    confidence="partly",
    scope="update",
)
def balanced(batch: Batch, *, count: Literal["signed", "group"] = "signed") -> Tensor:
    """Token mean inside positives and inside negatives of each prompt, combined by their counts. Returns (B, T).

    count  n counts "signed" rows (zero advantages belong to neither side) or the whole "group"

    Equal lengths inside each sign make it `sequence_mean`. Source: abstract and three digests; the rule for zero
    advantages is ours.
    """
    weights = loss_weights(batch)
    tokens, total = weights.sum(1), torch.zeros_like(weights)
    sign = torch.sign(row_advantage(batch))
    filled = tokens > 0
    members = group_count(batch.group, filled & (sign != 0) if count == "signed" else filled)
    prompts = len(torch.unique(batch.group[filled]))
    for side in (1, -1):
        mine = filled & (sign == side)
        share = group_count(batch.group, mine) / members.clamp(min=1)
        scale = share / group_sum(tokens, batch.group, mine).clamp(min=1e-12) / max(prompts, 1)
        total = total + weights * (scale * mine)[:, None]
    return total


@stage(
    "aggregation",
    method="justgrpo",
    paper="JustGRPO, arXiv 2601.15165",
    formula="w_it = m_it / (N L_max f), f = fraction of prompts with signal",
    confidence="verified",
    scope="update",
)
def constant_with_signal(batch: Batch, *, length: int | None = None) -> Tensor:
    """`constant`, divided by the fraction of prompts whose advantages are not all zero. Returns (B, T).

    length  as in `constant`

    Source: LeapLabTHU/JustGRPO, grpo.py.
    """
    active = (row_advantage(batch) != 0) & (loss_weights(batch).sum(1) > 0)
    prompts = len(torch.unique(batch.group))
    fraction = len(torch.unique(batch.group[active])) / max(prompts, 1)
    return constant(batch, length=length) / (fraction or 1.0)


@stage(
    "aggregation",
    method="lightningrl",
    paper="token mean over some rows",
    formula="w_it = m_it [i in rows] / sum of those",
    confidence="verified",
    needs=lambda *, rows="success", **_: columns("expert") if rows == "expert" else {},
    scope="update",
)
def rows_token_mean(batch: Batch, *, rows: Literal["success", "expert"] = "success") -> Tensor:
    """Token mean over successful rows, or over demonstrations (column `expert`). Returns (B, T), 0 without any.

    For auxiliary losses: `{name: nll, coefficient: 0.1, aggregation: rows_token_mean}`.
    """
    weights = loss_weights(batch) * row_filter(batch, rows)[:, None]
    return weights / weights.sum().clamp(min=1e-12)


@stage(
    "aggregation",
    method="laser",
    paper="LaSeR, arXiv 2510.14943",
    formula="w_i = 1 / (2 N_class(i)), spread evenly over the row; truncated rows 0",
    confidence="verified",
    scope="update",
)
def class_balanced(batch: Batch) -> Tensor:
    """Successful and failed rows weigh one half each. Returns (B, T). Truncated answers weigh 0.

    Each row's share is spread over its actions, for penalties that are constant along a row.
    """
    weights = loss_weights(batch)
    filled = (weights.sum(1) > 0) & ~batch.truncated
    good = row_filter(batch, "success")
    total = torch.zeros_like(weights)
    for side in (filled & good, filled & ~good):
        total = total + weights * (side / side.sum().clamp(min=1) / 2)[:, None]
    return total / weights.sum(1, keepdim=True).clamp(min=1e-12)


def row_filter(batch: Batch, rows: str) -> Tensor:
    """(B,) bool: successful rows, or demonstrations."""
    if rows == "expert":
        if "expert" not in batch:
            raise ConfigError("rows 'expert' reads the column `expert (B,)`, which marks demonstrations in a group")
        return batch["expert"].bool()
    if rows != "success":
        raise ConfigError(f"rows is {rows!r}; expected 'success' or 'expert'")
    return labels(batch) > 0.5
