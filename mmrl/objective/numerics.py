"""Arithmetic shared by the stages: bounded exponentials, half precision, means along the action axis."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.record import Batch, Evaluation

LOG_BOUND = 20.0
"""Log-ratios are clamped to +-20 before `exp`: no effect on sane data, avoids inf * 0 on insane data."""


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is promoted to float32; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def safe_exp(x: Tensor) -> Tensor:
    return x.clamp(-LOG_BOUND, LOG_BOUND).exp()


def log_ratio_to(evaluation: Evaluation, batch: Batch, other: Tensor | None = None) -> Tensor:
    """(B, T) current minus old (or `other`) log-probs, 0 outside the mask."""
    other = batch.old_log_probs if other is None else other
    difference = at_least_float32(evaluation.log_probs) - at_least_float32(other)
    return torch.where(batch.mask, difference, torch.zeros_like(difference))


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean over the row's mask; 0 for an empty row."""
    weight = mask.to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


def straight_through(value: Tensor, log_probs: Tensor) -> Tensor:
    """`value` in the forward pass; in the backward pass, log-space gradient through this token's own log-prob."""
    return value.detach() + log_probs - log_probs.detach()
