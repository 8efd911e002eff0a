"""Baselines that one outlier, one verifier scale or one all-wrong group cannot break.

All return `(B,)`, 0 for rows that do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import (
    degenerate,
    group_centred,
    group_count,
    group_extreme,
    group_mean,
    group_median,
    group_rank,
    group_std,
    group_sum,
)
from mmrl.objective.numerics import at_least_float32, either, whole_rewards
from mmrl.record import Batch
from mmrl.stages import stage


def scored(batch: Batch) -> Tensor:
    """(B,) bool: rows that enter baselines and have a reward."""
    return batch.counted.bool() & ~torch.isnan(batch.reward)


def successes(batch: Batch, asked_by: str) -> Tensor:
    """(B,) bool: the verifier accepts the output. ConfigError when no reward of the run says what success is."""
    if batch.success is None:
        raise ConfigError(f"{asked_by} reads the success flag, and no reward of this run is a verifier")
    return batch.success.nan_to_num(0) >= 0.5


@stage(
    "advantage",
    paper="MC-GRPO: Median-Centered GRPO for small-rollout RL, arXiv 2601.22582",
    formula="(r - median) / (median |r - median| + 1e-3), nonzero ones times n / #nonzero",
    confidence="verified",
)
def mc_grpo(batch: Batch, *, scale: str = "mad", floor: float = 1e-3, fallback: bool = True) -> Tensor:
    """Distance from the group's median over its median absolute deviation. (B,)

    scale     mad, std (of the group) or none
    floor     added to the scale
    fallback  take the std where the MAD vanishes, as it does for binary rewards as soon as a majority agrees;
              False is the released code, whose advantages then reach +-1000 times the group size

    Meant for an odd group, of which `mc_grpo_pivot` takes the median row out of the loss; an even group has its
    lower median. Source: the authors' code (lotusroot-kim/MC-GRPO).
    """
    if scale not in ("mad", "std", "none"):
        raise ConfigError(f"mc_grpo: {unknown('scale', scale, ('mad', 'std', 'none'))}")
    where = scored(batch)
    distance = (batch.reward - group_median(batch.reward, batch.group, where)).masked_fill(~where, 0.0)
    spread = group_std(batch.reward, batch.group, where)
    if scale == "mad":
        mad = group_median(distance.abs(), batch.group, where)
        spread = torch.where(mad < 1e-6, spread, mad) if fallback else mad
    advantage = distance if scale == "none" else distance / (spread + floor)
    moved = where & (advantage.abs() > 1e-6)
    share = group_count(batch.group, where) / group_count(batch.group, moved).clamp(min=1)
    return torch.where(moved, advantage * share, advantage)


@stage(
    "advantage",
    paper="NGRPO: Negative-enhanced GRPO, 2025",
    formula="(r - mean e) / (std e + eps), e = the group's rewards and k virtual ones of r_max",
    confidence="verified",
    scope="batch",
)
def ngrpo(batch: Batch, *, r_max: float = 1.0, virtual: int = 1, eps: float = 1e-6) -> Tensor:
    """Group statistics as if `virtual` more rollouts had scored the maximum, so all-wrong groups are pushed down. (B,)

    r_max    the attainable maximum; set lower, all-right groups turn negative
    virtual  how many such rollouts; they are never trained

    A group of one is fine (hence scope "batch": no group is too small). Pair it with clip low .16, high .24.
    Source: the authors' code (nangongrui-ngr/NGRPO), which skips the virtual reward for a group of one: not here.
    """
    where = scored(batch)
    n, best = group_count(batch.group, where) + virtual, batch.reward.new_tensor(r_max)
    mean = (group_sum(batch.reward, batch.group, where) + virtual * best) / n
    all_best = group_count(batch.group, where & (batch.reward != best)) == 0
    mean = torch.where(all_best, best, mean)  # which rounding would miss
    distance = (batch.reward - mean).masked_fill(~where, 0.0)
    squares = group_sum(distance**2, batch.group, where) + virtual * (best - mean) ** 2
    return distance / ((squares / (n - 1).clamp(min=1)).sqrt() + eps)


@stage(
    "advantage",
    "openvlthinkerv2_g2rpo",
    paper="OpenVLThinkerV2 (G2RPO), arXiv 2604.08539",
    formula="ot(r) = Phi^-1((rank - .5)/n), ties share their mean; inside each group, then over each task of the batch",
    confidence="verified",
    scope="batch",
)
def g2rpo(
    batch: Batch,
    *,
    pool: str = "group_then_task",
    per_component: bool = False,
    keep_dead_zero: bool = True,
    unit_variance: bool = False,
) -> Tensor:
    """Normal scores of reward ranks: every task gets the same advantage distribution and outliers no leverage. (B,)

    pool            group, task (rewards of a task pooled), or group_then_task (the paper)
    per_component   first step for each of the run's rewards by itself, or where there is one for each of its parts,
                    summed (the paper's GDPO flavour)
    keep_dead_zero  groups without spread stay out of the second step; the released code gives them the score of
                    0 among their task, which is not 0 (ours)
    unit_variance   divide by the standard deviation of the scores of a group of that size without ties

    Source: the project's core_algos (GS_GRPO, GS_GDPO).
    """
    pools = ("group", "task", "group_then_task")
    if pool not in pools:
        raise ConfigError(f"openvlthinkerv2_g2rpo: {unknown('pool', pool, pools)}")
    where = scored(batch)
    rewards = [batch.components[n] for n in whole_rewards(batch.components)] if per_component else [batch.reward]
    first = batch.task if pool == "task" else batch.group
    scores = torch.stack([normal_scores(r, first, where, unit_variance) for r in rewards]).sum(0)
    if pool != "group_then_task":
        return scores
    alive = where & ~degenerate(scores, batch.group, where) if keep_dead_zero else where
    # equal scores of different groups differ in their last bits, and must stay ties
    return normal_scores(scores.round(decimals=9), batch.task, alive, unit_variance)


def normal_scores(values: Tensor, group: Tensor, where: Tensor, unit_variance: bool = False) -> Tensor:
    """(B,) Phi^-1((rank + .5) / n) within the group, equal values sharing the mean of theirs; 0 outside `where`."""
    where = where & ~torch.isnan(values)
    rank = group_rank(torch.where(where, values, torch.full_like(values, torch.inf)), group)
    n = group_count(group, where).clamp(min=1)
    scores = torch.special.ndtri(((rank + 0.5) / n).clamp(max=1 - 0.5 / n).to(values.dtype)).masked_fill(~where, 0.0)
    if unit_variance:
        scores = scores / group_std(scores, group, where, ddof=0).clamp(min=1e-12)
    _, ids = torch.unique(group, return_inverse=True)
    pairs = torch.stack([ids.to(values.dtype), values.nan_to_num(0.0)], dim=1)
    _, ties = torch.unique(pairs, dim=0, return_inverse=True)
    level = group_extreme(values, group, where) == group_extreme(values, group, where, largest=False)
    return group_mean(scores, ties, where).masked_fill(~where | level, 0.0)


@stage(
    "advantage",
    "psr_nsr_w_reinforce",
    paper="The Surprising Effectiveness of Negative Reinforcement, arXiv 2506.01347",
    formula="lambda if right, -1 if wrong (PSR: 1 and 0; NSR: 0 and -1)",
    confidence="verified",
    scope="batch",
    needs=("success",),
)
def psr_nsr(batch: Batch, *, mode: str = "w_reinforce", positive: float = 0.1) -> Tensor:
    """The binary outcome itself, right answers weighted down; no baseline and no group needed. (B,)

    mode      w_reinforce, psr (right answers only) or nsr (wrong answers only)
    positive  weight of right answers in w_reinforce; smaller keeps more diversity

    With psr and nsr add the group function `drop_zero_advantage`: the paper averages over the rows that are left.
    Source: the authors' code (TianHongZXY/RLVR-Decomposed).
    """
    weights = {"w_reinforce": (positive, -1.0), "psr": (1.0, 0.0), "nsr": (0.0, -1.0)}
    if mode not in weights:
        raise ConfigError(f"psr_nsr_w_reinforce: {unknown('mode', mode, weights)}")
    right, wrong = weights[mode]
    values = either(successes(batch, "psr_nsr_w_reinforce"), right, wrong, at_least_float32(batch.old_log_probs))
    return values.masked_fill(~scored(batch) | torch.isnan(batch.success), 0.0)


@stage(
    "advantage",
    paper="Weighted GRPO with bidirectional pairing, arXiv 2602.03452",
    formula="(x - mean)/(std + eps) over the pair; x = +1 for a right answer to the hard prompt, -1 for a wrong one to "
    "the easy prompt, -+common for the usual outcomes",
    confidence="reconstructed",
    scope="batch",
    needs=("success",),
)
def pairing_wgrpo(
    batch: Batch, *, scope: str = "pair", common: float = 0.5, eps: float = 1e-6, ddof: int = 0
) -> Tensor:
    """A hard and an easy prompt share their statistics: rare right and rare wrong answers get the big advantages. (B,)

    scope   pair: consecutive groups are a pair, the one with the lower success rate is hard; prompt: each by
            itself, where the weights cancel and only binary GRPO is left
    common  weight of the usual outcome (wrong on hard, right on easy) against 1 of the rare one

    Source: the abstract (pair-level reweighting, then group normalization) and a third-party summary; the
    weights themselves were not found, so `common` is ours.
    """
    if scope not in ("pair", "prompt"):
        raise ConfigError(f"pairing_wgrpo: {unknown('scope', scope, ('pair', 'prompt'))}")
    where = scored(batch)
    right = successes(batch, "pairing_wgrpo")
    _, place = torch.unique(batch.group, return_inverse=True)
    together = place // 2 if scope == "pair" else place
    rate = group_mean(right.to(batch.reward.dtype), batch.group, where)
    hard = rate < (group_extreme(rate, together, where) + group_extreme(rate, together, where, largest=False)) / 2
    rare = hard == right
    outcome = torch.where(right, 1.0, -1.0).to(batch.reward.dtype)
    outcome = torch.where(rare, outcome, outcome * (common if scope == "pair" else 1.0))
    return group_centred(outcome, together, where) / (group_std(outcome, together, where, ddof) + eps)


@stage(
    "advantage",
    paper="Optimizing pass@k by the best of a group, arXiv 2503.19595",
    formula="r_max - r_second for the best rollout of the group, 0 for the others",
    confidence="verified",
    method="pass_at_k",
)
def pass_at_k(batch: Batch, *, std: bool = False, eps: float = 1e-6) -> Tensor:
    """Only the best rollout learns, by how much it beats the second best; 0 when two are best. (B,)

    std  divide by the group's standard deviation

    Source: verl (`grpo_passk`).
    """
    where = scored(batch)
    best = group_extreme(batch.reward, batch.group, where)
    leads = where & (batch.reward == best)
    tied = group_count(batch.group, leads) > 1
    second = group_extreme(batch.reward, batch.group, where & ~leads)
    alone = group_count(batch.group, where) < 2
    advantage = torch.where(leads & ~tied & ~alone, best - second, torch.zeros_like(best))
    return advantage / (group_std(batch.reward, batch.group, where) + eps) if std else advantage
