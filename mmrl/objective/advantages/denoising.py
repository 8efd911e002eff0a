"""Advantages of denoising steps: what a step gains (DenseGRPO), what follows it (VGPO), branches that differ in one
step (TempFlow-GRPO)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective.groups import group_normalized
from mmrl.record import Batch
from mmrl.stages import FLOW, Need, stage


@stage(
    "advantage",
    paper="DenseGRPO: from sparse to dense reward, arXiv 2601.20218",
    formula="A_t = normalised over the group at step t of gain_t = V(x_{t+1}) - V(x_t), V the reward of x's ODE image",
    confidence="verified",
    needs=("step_rewards", "reward"),
    modalities=FLOW,
    grain="action",
)
def densegrpo(batch: Batch, *, eps: float = 1e-4, ddof: int = 0) -> Tensor:
    """Each step is credited with the reward it gains, compared with the group's gain at the same step. (B, T)

    `step_rewards[b, t]` is the reward of the image the ODE leads to from the state before action t; after the last
    trained step it is the reward itself, so the gains of a rollout add up to reward - step_rewards of its first
    trained step. One look-ahead image for each trained step is generated and scored. Defaults as Flow-GRPO's.
    """
    gains = step_gains(batch["step_rewards"], batch.reward, batch.mask)
    advantage = torch.zeros_like(gains)
    for t in range(gains.shape[1]):
        compared = batch.mask[:, t] & batch.counted
        gain = group_normalized(gains[:, t], batch.group, compared, eps, ddof)
        advantage[:, t] = torch.where(compared, gain, 0.0)
    return advantage


def step_gains(values: Tensor, reward: Tensor, mask: Tensor) -> Tensor:
    """(B, T) what each step adds to the reward: the value behind it less that before it, 0 outside `mask`.

    values  (B, T) of the state before each step; reward (B,) of the output, the value behind the last step
    """
    values, after = values.to(reward), reward.clone()
    gains = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        gains[:, t] = torch.where(mask[:, t], after - values[:, t], 0.0)
        after = torch.where(mask[:, t], values[:, t], after)
    return gains


@stage(
    "advantage",
    paper="VGPO: anchoring values in time and group, arXiv 2512.12387",
    formula="w_t [(Q_t - mean Q_t) / (std Q_t + eps) + k Q_t], Q_t = sum_(j >= t) gamma^(j - t) R_j, w_t = Q_t over "
    "its mean along the row; R_j is the reward of the one-step output behind step j",
    confidence="partly",
    needs=lambda **_: {"projected_rewards": Need("step_rewards", options=(("projection", "one_step"),))},
    modalities=FLOW,
    grain="action",
)
def vgpo(
    batch: Batch, *, gamma: float = 0.9, absolute: float = 0.1, first: float = 0.5, floor: float = 0.0,
    eps: float = 1e-4,
) -> Tensor:  # fmt: skip
    """A step is worth the discounted rewards of the outputs that it and the steps behind it point to. (B, T)

    gamma     discount for each trained step towards the clean image
    absolute  k: what is left of the value where all rollouts of a group are alike
    first     share of the trained steps in which that term acts: the paper's first 5 of 10
    floor     the least a reward can be; it is subtracted, since the weights w_t want values above 0. A reward below
              it stops the run

    Behind the last trained step stands the reward itself. One output for each trained step is made by one transformer
    call and scored: blurred early, where it is least to be trusted. What is known of the paper is second-hand: the
    shape Q - mean + alpha Q with alpha = k std is ours after its limit of equal rollouts.
    """
    values, following = batch["projected_rewards"].to(batch.reward), batch.reward.clone()
    where = batch.counted & ~torch.isnan(batch.reward)
    scored = torch.where(batch.mask, values, following[:, None])[where]
    if scored.numel() and scored.min() < floor:
        raise PolicyError(
            f"vgpo: a reward of {float(scored.min()):g} lies below floor={floor:g}; set "
            "objective.advantage.floor to the least value that the rewards can take"
        )
    worth, after = torch.zeros_like(values), torch.zeros_like(following)
    for t in reversed(range(values.shape[1])):
        at = batch.mask[:, t]
        after = torch.where(at, following - floor + gamma * after, after)
        worth[:, t] = torch.where(at & where, after, 0.0)
        following = torch.where(at, values[:, t], following)
    mean = worth.sum(1) / batch.mask.sum(1).clamp(min=1)
    weight = worth / torch.where(mean > 0, mean, 1.0)[:, None]
    rank = batch.mask.cumsum(1)
    early = rank <= (first * batch.mask.sum(1, keepdim=True)).ceil()
    advantage = torch.zeros_like(worth)
    for t in range(worth.shape[1]):
        at = batch.mask[:, t] & where
        relative = group_normalized(worth[:, t], batch.group, at, eps, ddof=0)
        advantage[:, t] = torch.where(at, relative, 0.0)
    return weight * (advantage + absolute * worth * early) * batch.mask


@stage(
    "advantage",
    paper="TempFlow-GRPO: when timing matters, arXiv 2508.04324",
    formula="A_i = (R_i - mean) / (std + eps) over the branches of one prompt, seed and step, or prompt and step",
    confidence="verified",
    needs=("branch", "reward"),
    modalities=FLOW,
)
def tempflow_grpo(
    batch: Batch, *, within: Literal["seed", "prompt"] = "seed", eps: float = 1e-4, ddof: int = 0
) -> Tensor:
    """Branches that leave one ODE trajectory at one step are compared with each other only. (B,)

    within  "seed": they differ in that step's noise alone, so their reward differences are its credit; the authors'
            choice, worth 2 points in their ablation. "prompt": those that leave any of its trajectories at that step,
            more to compare with, and the luck of a seed is credited to its branches

    Wants `policy.train_steps: {select: one}`. A step with a single scored branch gets 0.
    """
    if within not in ("seed", "prompt"):
        raise ConfigError(f"advantage tempflow_grpo: within is {within!r}; expected 'seed' or 'prompt'")
    left = batch["branch"] if within == "seed" else batch.mask.int().argmax(1)
    pairs = torch.stack([batch.group, left.to(batch.group)], 1)
    _, siblings = torch.unique(pairs, dim=0, return_inverse=True)
    return group_normalized(batch.reward, siblings, batch.counted, eps, ddof)
