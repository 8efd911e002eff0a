"""Baselines for data that another policy made: VCPO's minimum-variance baseline, A-LoL's positive advantage."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.advantages.robust import scored
from mmrl.objective.groups import group_average, group_std
from mmrl.objective.numerics import safe_exp
from mmrl.record import Batch
from mmrl.stages import stage


def sampler_ratio(batch: Batch) -> Tensor:
    """(B,) sequence ratio of the trainer's old policy to the sampling engine's; 1 where the engine reports none."""
    if "sampler_log_probs" not in batch:
        return torch.ones_like(batch.reward)
    return safe_exp(((batch.old_log_probs - batch["sampler_log_probs"]) * batch.mask).sum(1)).to(batch.reward)


@stage(
    "advantage",
    paper="VCPO: stable asynchrony, arXiv 2602.17616",
    formula="A_i = r_i - b, b = sum W^2 g^2 r / sum W^2 g^2 over the group, W = min(sequence ratio, cap)",
    confidence="verified",
    needs=("score_gradient_norm",),
)
def vcpo(batch: Batch, *, cap: float = 8.0, std: bool = False, eps: float = 1e-6) -> Tensor:
    """Reward minus the baseline of least variance under importance weights.

    cap  of the sequence ratio between trainer and sampler
    std  divide by the group's deviation

    Reads `score_gradient_norm (B,)`, the norm of each trajectory's score gradient, and `sampler_log_probs` where
    the engine reports them. Returns (B,). Equal ratios and norms give the group mean. The learning-rate half is
    `learning_rate: effective_samples`. Source: mit-han-lab/vcpo, megatron_actor.py.
    """
    counted = batch.counted & ~torch.isnan(batch.reward)
    weight = (sampler_ratio(batch).clamp(max=cap) * batch["score_gradient_norm"].to(batch.reward)) ** 2
    base = group_average(batch.reward, weight, batch.group, counted)
    advantage = torch.where(counted, batch.reward - base, torch.zeros_like(base))
    return advantage / (group_std(batch.reward, batch.group, counted) + eps) if std else advantage


@stage(
    "advantage",
    paper="Advantage-Leftover Lunch (A-LoL), arXiv 2305.14718",
    formula="A_i = max(r_i - V(x_i), 0), V the reference policy's value of the prompt",
    confidence="verified",
    scope="batch",
    needs=("reference_value",),
)
def a_lol(batch: Batch, *, keep_negative: bool = False) -> Tensor:
    """Reward above the reference policy's value; answers below it do not train.

    keep_negative  keep the sign, as the paper's ablation

    Reads `reference_value (B,)`. Returns (B,). Source: abaheti95/LoL-RL.
    """
    advantage = torch.where(scored(batch), batch.reward - batch["reference_value"], torch.zeros_like(batch.reward))
    return advantage if keep_negative else advantage.clamp(min=0)
