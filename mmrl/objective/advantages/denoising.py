"""Advantages of denoising steps: what a step gains (DenseGRPO), branches that differ in one step (TempFlow-GRPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.groups import group_normalized
from mmrl.record import Batch
from mmrl.stages import FLOW, stage


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
    values, after = batch["step_rewards"].to(batch.reward), batch.reward.clone()
    advantage = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        at = batch.mask[:, t]
        gain = group_normalized(after - values[:, t], batch.group, at & batch.counted, eps, ddof)
        advantage[:, t] = torch.where(at & batch.counted, gain, 0.0)
        after = torch.where(at, values[:, t], after)
    return advantage


@stage(
    "advantage",
    paper="TempFlow-GRPO: when timing matters, arXiv 2508.04324",
    formula="A_i = (R_i - mean) / (std + eps) over the branches of one prompt, seed and step",
    confidence="verified",
    needs=("branch", "reward"),
    modalities=FLOW,
)
def tempflow_grpo(batch: Batch, *, eps: float = 1e-4, ddof: int = 0) -> Tensor:
    """Branches that leave one ODE trajectory at one step are compared with each other only. (B,)

    They differ in that step's noise alone, so their reward differences are its credit. Wants
    `policy.train_steps: {select: one}`. A step with a single scored branch gets 0.
    """
    pairs = torch.stack([batch.group, batch["branch"].to(batch.group)], 1)
    _, siblings = torch.unique(pairs, dim=0, return_inverse=True)
    return group_normalized(batch.reward, siblings, batch.counted, eps, ddof)
