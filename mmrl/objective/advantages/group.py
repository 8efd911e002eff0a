"""Baselines from the group of a prompt: GRPO, Dr.GRPO, RLOO, GUI-Libra's scaling, REINFORCE++.

All read `batch.reward (B,)`, `batch.group (B,)` and `batch.counted (B,)`. Unscored rows (NaN) never enter a
statistic and get 0. A group of one has no baseline; `Objective` leaves it out of the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_centred, group_count, group_mean, group_normalized, group_std, group_sum
from mmrl.objective.numerics import at_least_float32
from mmrl.record import Batch
from mmrl.stages import NEEDS, Need, stage


@stage(
    "advantage",
    paper="DeepSeekMath (GRPO), arXiv 2402.03300",
    formula="A_i = (r_i - mean_g) / (std_g + eps)",
    confidence="verified",
)
def grpo(batch: Batch, *, eps: float = 1e-6, std: Literal["group", "batch", "none"] = "group", ddof: int = 1) -> Tensor:
    """Group-standardised reward.

    eps   added to the deviation; TRL uses 1e-4, verl 1e-6
    std   "group", "batch" (deviation of all counted rewards; steadier with small groups), "none" (Dr.GRPO)
    ddof  1 unbiased (TRL, verl), 0 population

    Returns (B,). A group of equal rewards gets 0. Source: TRL and verl code.
    """
    if std not in ("group", "batch", "none"):
        raise ConfigError(f"advantage grpo: std is {std!r}; expected 'group', 'batch' or 'none'")
    if std == "group":
        return group_normalized(batch.reward, batch.group, batch.counted, eps, ddof)
    advantage = group_centred(batch.reward, batch.group, batch.counted)
    if std == "none":
        return advantage
    everyone = torch.zeros_like(batch.group)
    return advantage / (group_std(batch.reward, everyone, batch.counted, ddof) + eps)


@stage(
    "advantage",
    paper="Understanding R1-Zero-like training (Dr.GRPO), arXiv 2503.20783",
    formula="A_i = r_i - mean_g",
    confidence="verified",
)
def dr_grpo(batch: Batch) -> Tensor:
    """Reward minus the group mean, without the deviation that favours very easy and very hard prompts.

    Returns (B,). Pair it with the `constant` aggregation. Source: TRL and verl code.
    """
    return group_centred(batch.reward, batch.group, batch.counted)


@stage(
    "advantage",
    "none",
    method="reinforce",
    paper="REINFORCE, Williams 1992",
    formula="A_i = r_i",
    confidence="verified",
    scope="batch",
)
def raw(batch: Batch) -> Tensor:
    """The reward itself, without a baseline: no group is needed. Returns (B,).

    For rewards that carry their own zero, such as those `noisy_verifiers` corrects: any baseline or deviation of the
    group undoes an affine correction.
    """
    return torch.where(batch.counted, batch.reward, torch.zeros_like(batch.reward)).nan_to_num(0)


@stage(
    "advantage",
    paper="Back to Basics (RLOO), arXiv 2402.14740",
    formula="A_i = r_i - mean of the other rewards of the group = n/(n-1) (r_i - mean_g)",
    confidence="verified",
)
def rloo(batch: Batch, *, std: Literal["none", "others"] = "none") -> Tensor:
    """Reward minus the mean reward of the other members of the group: an unbiased baseline.

    std  "others" divides by the deviation of the other members where they differ, as NeMo RL does

    Returns (B,); advantages of a group add up to 0. The classic method sums log-probs over the sequence and
    puts its KL into the reward: recipe `rloo`. Source: TRL `RLOOTrainer`, verl, NeMo RL `utils.py`.
    """
    if std not in ("none", "others"):
        raise ConfigError(f"advantage rloo: std is {std!r}; expected 'none' or 'others'")
    counted = batch.counted & ~torch.isnan(batch.reward)
    count = group_count(batch.group, counted).to(batch.reward)
    centred = group_centred(batch.reward, batch.group, batch.counted)
    advantage = centred * count / (count - 1).clamp(min=1)
    if std == "none":
        return advantage
    # the sum of squares around the others' mean follows from the group's: no second pass over pairs
    squares = group_sum(centred**2, batch.group, counted) - centred * advantage
    spread = (squares.clamp(min=0) / (count - 2).clamp(min=1)).sqrt()
    differ = (spread > 1e-6) & (count > 2)
    return torch.where(differ, advantage / spread.clamp(min=1e-6), advantage)


@stage(
    "advantage",
    paper="GUI-Libra, arXiv 2602.22190",
    formula="GRPO, then for A < 0: A clip(base + slope mean_g(r), 0, 1)",
    confidence="verified",
)
def gui_libra(batch: Batch, *, base: float = 0.5, slope: float = 1.5, eps: float = 1e-6) -> Tensor:
    """GRPO whose negative advantages shrink on prompts with low success.

    base, slope  the scale of a negative advantage is `base + slope * mean reward`, cut to [0, 1]; rewards in [0, 1].
                 A lower base forgives more where a verifier rejects answers that may be right

    Returns (B,). Source: seooyxx/GUI-Libra, EasyR1 fork, core_algos.py. Its KL to the SFT model is the
    regularizer `kl`.
    """
    advantage = group_normalized(batch.reward, batch.group, batch.counted, eps)
    scale = (base + slope * group_mean(batch.reward, batch.group, batch.counted)).clamp(0, 1)
    return torch.where(advantage < 0, advantage * scale, advantage)


def whiten(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(B, T) zero mean and unit unbiased variance over all unmasked actions; 0 outside the mask."""
    flat, inside = values.flatten(), mask.flatten()
    centred = group_centred(flat, torch.zeros_like(inside, dtype=torch.long), inside).view_as(values)
    return centred * torch.rsqrt((centred**2).sum() / (mask.sum() - 1).clamp(min=1) + eps)


def discounted_returns(rewards: Tensor, mask: Tensor, discount: float) -> Tensor:
    """(B, T) sum of the later rewards of the row, discounted by each unmasked action in between."""
    returns, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = torch.where(mask[:, t], rewards[:, t] + discount * running, running)
        returns[:, t] = running
    return returns * mask


def on_last_action(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) the row's value on its last unmasked action, 0 elsewhere."""
    after = mask.flip(1).long().cumsum(1).flip(1)
    return torch.where(mask & (after == 1), values[:, None], torch.zeros_like(values[:, None]))


def _kl_needs(*, kl: float = 0.0, **_) -> dict[str, Need]:
    return {"ref_log_probs": NEEDS["ref_log_probs"]} if kl else {}


def _token_returns(batch: Batch, reward: Tensor, discount: float, kl: float) -> tuple[Tensor, Tensor]:
    """Returns (B, T) of outcome rewards with a per-action KL penalty, and which actions count (B, T)."""
    counted = batch.mask & (batch.counted & ~torch.isnan(batch.reward))[:, None]
    rewards = on_last_action(reward.nan_to_num(0).to(at_least_float32(batch.old_log_probs)), counted)
    if kl:
        rewards = rewards - kl * (batch.old_log_probs - batch["ref_log_probs"]) * counted
    return discounted_returns(rewards, counted, discount), counted


@stage(
    "advantage",
    paper="REINFORCE++, arXiv 2501.03262",
    formula="ret_it = sum_{u >= t} gamma^(u - t) (reward_iu - kl k1_iu), whitened over all actions of the batch",
    confidence="verified",
    needs=_kl_needs,
    scope="batch",
    grain="action",
)
def reinforce_plus_plus(batch: Batch, *, discount: float = 1.0, kl: float = 0.0, eps: float = 1e-8) -> Tensor:
    """Returns of each action, whitened over the whole batch: no group is needed.

    discount  gamma; 1 spreads the outcome evenly, smaller favours late actions
    kl        coefficient of the per-action KL (k1 to the reference) inside the reward

    Returns (B, T). Source: verl. Ours: actions behind a gap of the mask (tool outputs) keep their return, where
    verl restarts it.
    """
    returns, counted = _token_returns(batch, batch.reward, discount, kl)
    return whiten(returns, counted, eps)


@stage(
    "advantage",
    method="reinforce_plus_plus",
    paper="REINFORCE++-baseline, arXiv 2501.03262",
    formula="as reinforce_plus_plus with r_i - mean_g in place of r_i",
    confidence="verified",
    needs=_kl_needs,
    scope="batch",
    relative=True,
    grain="action",
)
def reinforce_plus_plus_baseline(batch: Batch, *, discount: float = 1.0, kl: float = 0.0, eps: float = 1e-8) -> Tensor:
    """REINFORCE++ on rewards that were centred in their group first. Returns (B, T).

    discount, kl  as in `reinforce_plus_plus`
    """
    centred = group_centred(batch.reward, batch.group, batch.counted)
    returns, counted = _token_returns(batch, centred, discount, kl)
    return whiten(returns, counted, eps)
