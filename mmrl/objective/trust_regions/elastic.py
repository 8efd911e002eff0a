"""Bounds that follow the action: its probability (DCPO), its segment's entropy (SSPO), the signal's quality (ETR)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.objective.groups import group_std
from mmrl.objective.numerics import at_least_float32, outcome, safe_exp, segment_mean, segment_sum
from mmrl.objective.ratios import segments
from mmrl.objective.trust_regions.clip import ppo
from mmrl.record import Batch, Evaluation
from mmrl.stages import NEEDS, stage


@stage(
    "trust_region",
    method="dcpo_clipping",
    paper="DCPO: Dynamic Clipping Policy Optimization, arXiv 2509.02333",
    formula="lo = 1/2 + 1/2 sqrt(max(1 - 4 low/q, 0)), hi = min(1/2 + 1/2 sqrt(1 + 4 high/q), cap), q = exp(lp_old)",
    confidence="verified",
)
def dcpo(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.16,
    high: float = 0.2,
    cap: float = 10.0,
    dual: float | None = None,
) -> Tensor:
    """Bounds the change of probability, so that rare actions may move further. Returns (B, T).

    low, high  |(r - 1) r q| stays below these; the paper's table, its scripts run 0.2 and 0.28
    cap        of the upper bound
    dual       as in `clip`; the authors' scripts use 10

    Pair it with ratio `token` and aggregation `only_token_mean`. Source: lime-RL/DCPO, core_algos.py.
    """
    prior = safe_exp(batch.old_log_probs).to(log_ratio)
    lo = 0.5 + 0.5 * (1 - 4 * low / prior).clamp(min=0).sqrt()
    hi = (0.5 + 0.5 * (1 + 4 * high / prior).sqrt()).clamp(max=cap)
    return ppo(safe_exp(log_ratio), batch.advantage, lo, hi, dual)


@stage(
    "trust_region",
    paper="SSPO: Subsentence-level Policy Optimization, arXiv 2511.04256",
    formula="PPO(s_ik, A; 1 - low f_k, 1 + high f_k), f_k = clip(H_k / mean_k H_k, smallest, largest)",
    confidence="reconstructed",
    needs=lambda *, separators=(), **_: {"entropy": NEEDS["entropy"], **({} if separators else columns("segment"))},
)
def sspo(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    smallest: float = 0.5,
    largest: float = 1.5,
    separators: tuple[int, ...] = (),
    shortest: int = 2,
) -> Tensor:
    """Wider bounds for segments of high entropy, narrower for low. Returns (B, T).

    low, high              at the row's mean segment entropy
    smallest, largest      of the factor; 1 and 1 is `clip`
    separators, shortest   as in ratio `segment`, which it goes with

    Source: abstract ("encourage exploration for high-entropy tokens, tighten for low-entropy"); the rule is ours:
    no formula was found.
    """
    ids = segments(batch, tuple(separators), shortest)
    factor = entropy_factor(batch["entropy"], ids, batch.mask).clamp(smallest, largest).to(log_ratio)
    return ppo(safe_exp(log_ratio), batch.advantage, 1 - low * factor, 1 + high * factor)


def entropy_factor(entropy: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) mean entropy of the action's segment over the mean of the row's segments; 1 where all are 0."""
    inside = (mask & (ids >= 0)).to(entropy.dtype)
    own = segment_mean(entropy * inside, ids, mask)
    once = inside / segment_sum(inside, ids, mask).clamp(min=1)
    mean = (own * once).sum(1, keepdim=True) / once.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.where(mean > 0, own / mean.clamp(min=1e-12), torch.ones_like(own))


def group_signal(batch: Batch) -> dict[str, Tensor]:
    """`group_signal (B,)` in [0, 1]: the group's reward variance over the largest; 4 p (1 - p) if binary."""
    values = outcome(batch) if batch.success is None else batch.success
    values = values.to(at_least_float32(batch.old_log_probs))
    counted = batch.counted & ~torch.isnan(values)
    variance = group_std(values, batch.group, counted, ddof=0) ** 2
    seen = values[counted]
    width = (seen.max() - seen.min()).clamp(min=1e-12) if len(seen) else variance.new_ones(())
    return {"group_signal": (4 * variance / width**2).clamp(max=1)}


@stage(
    "trust_region",
    paper="ETR: Outcome-Guided Elastic Trust Regions, arXiv 2601.03723",
    formula="PPO with 1 -+ eps k v, k = 1 + a min(|A|/A0, 1), v = 1 + b 4 p (1 - p)",
    confidence="reconstructed",
    prepared=group_signal,
)
def etr(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    by_advantage: float = 0.5,
    by_group: float = 0.5,
    scale: float = 2.0,
    floor: float = 0.05,
    ceiling: float = 3.0,
) -> Tensor:
    """Wider bounds for large advantages and for groups of intermediate success. Returns (B, T).

    low, high       of a zero advantage in a group that is all right or all wrong
    by_advantage    a: how much wider at |A| = `scale`; 0 and by_group 0 is `clip`
    by_group        b: how much wider at a success rate of one half
    floor, ceiling  of the resulting ratio bounds

    Source: abstract (bounds scale with the advantage's size and with group variance); the form is ours: no formula
    was found.
    """
    advantage = batch.advantage
    width = 1 + by_advantage * (advantage.abs() / scale).clamp(max=1)
    width = width * (1 + by_group * batch["group_signal"][:, None]).to(width)
    lo, hi = (1 - low * width).clamp(min=floor), (1 + high * width).clamp(max=ceiling)
    return ppo(safe_exp(log_ratio), advantage, lo.to(log_ratio), hi.to(log_ratio))
