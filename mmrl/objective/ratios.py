"""Stage 7: at which granularity the new policy is compared with the one that sampled.

Every function returns the differentiable log-ratio `(B, T)`; a whole-sequence ratio stands on each action of
its row. Trust regions exponentiate (clamped to +-20).
"""

from __future__ import annotations

from torch import Tensor

from mmrl.objective.numerics import at_least_float32, log_ratio_to, row_mean, straight_through
from mmrl.record import Batch, Evaluation
from mmrl.stages import stage


@stage(
    "ratio",
    method="grpo",
    paper="DeepSeekMath (GRPO), arXiv 2402.03300",
    formula="R_it = lp_new_it - lp_old_it",
)
def token(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Each action by itself: a token, or a denoising step. Returns (B, T)."""
    return log_ratio_to(evaluation, batch)


@stage(
    "ratio",
    method="gspo",
    paper="Group Sequence Policy Optimization (GSPO), arXiv 2507.18071",
    formula="log s_i = mean_t R_it on every action, gradient through the whole mean",
)
def sequence(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Length-normalised ratio of the whole sequence. Returns (B, T), constant along a row.

    Ratios live very near 1: use clip bounds of about 3e-4 and 4e-4, and `sequence_mean`. Advantages that
    differ inside a row want `gspo_token`. Source: TRL (importance level "sequence").
    """
    mean = row_mean(log_ratio_to(evaluation, batch), batch.mask)
    return mean[:, None] * batch.mask


@stage(
    "ratio",
    method="gspo",
    paper="Group Sequence Policy Optimization (GSPO-token), arXiv 2507.18071",
    formula="log s_it = sg(mean_t R_it) + lp_new_it - sg(lp_new_it)",
)
def gspo_token(evaluation: Evaluation, batch: Batch) -> Tensor:
    """The sequence ratio in value, each action's own log-prob in gradient, so that advantages may differ by action.

    Returns (B, T). Equal to `sequence` in value and gradient while the advantage is constant inside a row.
    verl implements only this form, with the log clamped at 10.
    """
    return straight_through(sequence(evaluation, batch), at_least_float32(evaluation.log_probs)) * batch.mask
