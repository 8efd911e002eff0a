"""A trust region for rows that were sampled under a hint and are trained without it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import safe_exp
from mmrl.objective.trust_regions.clip import ppo
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, stage


def row_quantile(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """(B, 1) the quantile of each row's values inside `mask (B, T)`, interpolated as by torch; 0 if none."""
    count = mask.sum(1, keepdim=True)
    ordered = values.masked_fill(~mask, torch.inf).sort(1).values
    place = share * (count - 1).clamp(min=0)
    low = place.floor().long()
    high = torch.minimum(low + 1, (count - 1).clamp(min=0))
    below, above = ordered.gather(1, low), ordered.gather(1, high)
    between = below + (place - low) * (above - below)
    return torch.where(count > 0, between, torch.zeros_like(between))


@stage(
    "trust_region",
    paper="Adaptive Guidance Accelerates Reinforcement Learning of Reasoning Models (Guide-GRPO), arXiv 2506.13923",
    formula="hinted rows: A rho/(rho + g), g the row's quantile of rho, detached, no clip; others: PPO clip",
    needs=("hint",),
    modalities=LANGUAGE,
    confidence="verified",
)
def guide(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    share: float = 0.9,
    least: float = 1e-4,
) -> Tensor:
    """Hinted rows weigh rho/(rho + g): bounded, and steep where the bare prompt finds an action unlikely. (B, T)

    low, high  clip of the rows that saw no hint
    share      g is this quantile of the row's ratios; smaller saturates earlier
    least      lower bound of g

    Source: vaskar-open-source-research/guide_rl, core_algos.py. There the quantile is that of a micro-batch, which the
    released configuration makes of one row.
    """
    ratio = safe_exp(log_ratio)
    bound = row_quantile(ratio.detach(), batch.mask, share).clamp(min=least)
    shaped = ratio / (ratio + bound) * batch.advantage
    own = ppo(ratio, batch.advantage, 1 - low, 1 + high)
    return torch.where((batch["hint"] > 0)[:, None], shaped, own)
