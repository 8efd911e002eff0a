"""Baselines from the group of a prompt: GRPO, Dr.GRPO, RLOO.

All read `batch.reward (B,)`, `batch.group (B,)` and `batch.counted (B,)` and return `(B,)`. Unscored rows
(NaN) never enter a statistic. A group of one has no baseline; `Objective.prepare` leaves it out of the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_count, group_mean, group_std
from mmrl.record import Batch
from mmrl.stages import stage

Spread = Literal["group", "batch", "none"]


def centred(batch: Batch) -> Tensor:
    """(B,) reward minus the mean of its group."""
    return batch.reward - group_mean(batch.reward, batch.group, batch.counted)


@stage(
    "advantage",
    paper="DeepSeekMath (GRPO), arXiv 2402.03300",
    formula="A_i = (r_i - mean_g) / (std_g + eps)",
)
def grpo(batch: Batch, *, eps: float = 1e-6, std: Spread = "group", ddof: int = 1) -> Tensor:
    """Group-standardised reward.

    eps   added to the deviation; TRL uses 1e-4, verl 1e-6
    std   "group", "batch" (deviation of all counted rewards; steadier with small groups), "none" (Dr.GRPO)
    ddof  1 unbiased (TRL, verl), 0 population

    Returns (B,). A group of equal rewards gets 0. Source: TRL and verl code.
    """
    if std not in ("group", "batch", "none"):
        raise ConfigError(f"grpo: std is {std!r}; expected 'group', 'batch' or 'none'")
    advantage = centred(batch)
    if std == "none":
        return advantage
    group = batch.group if std == "group" else torch.zeros_like(batch.group)
    return advantage / (group_std(batch.reward, group, batch.counted, ddof) + eps)


@stage(
    "advantage",
    paper="Understanding R1-Zero-like training (Dr.GRPO), arXiv 2503.20783",
    formula="A_i = r_i - mean_g",
)
def dr_grpo(batch: Batch) -> Tensor:
    """Reward minus the group mean, without the deviation that favours very easy and very hard prompts.

    Returns (B,). Pair it with the `constant` aggregation. Source: TRL and verl code.
    """
    return centred(batch)


@stage(
    "advantage",
    paper="Back to Basics (RLOO), arXiv 2402.14740",
    formula="A_i = r_i - mean of the other rewards of the group = n/(n-1) (r_i - mean_g)",
)
def rloo(batch: Batch) -> Tensor:
    """Reward minus the mean reward of the other members of the group: an unbiased baseline.

    Returns (B,); advantages of a group add up to 0. The classic method sums log-probs over the sequence and
    puts its KL into the reward: recipe `rloo`. Source: TRL `RLOOTrainer`, verl.
    """
    count = group_count(batch.group, batch.counted).to(batch.reward.dtype)
    return centred(batch) * count / (count - 1).clamp(min=1)
