"""Advantages from a reward of noisy states beside the outcome's: Euphonium."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.groups import group_normalized
from mmrl.record import Batch
from mmrl.stages import FLOW, Need, stage


@stage(
    "advantage",
    paper="Euphonium: process-reward guided dynamics for flow matching, arXiv 2602.04928",
    formula="A_t = w_O (R - mean_g) / (std_g + eps) + w_P (P_t - mean_g P_t) / (std_g P_t + eps), P_t the process "
    "reward of the state that step t leads to",
    confidence="partly",
    needs=lambda **_: {"process_reward": Need("process_reward")},
    modalities=FLOW,
    grain="action",
    relative=True,
)
def euphonium(batch: Batch, *, outcome: float = 1.0, process: float = 1.0, eps: float = 1e-8, ddof: int = 1) -> Tensor:
    """The outcome's advantage at every step, plus that of the state each step led to, within the group. (B, T)

    outcome, process  weights of the two

    Wants `policy.push`, whose reward it is. The authors clip two terms, one with each advantage; here the advantages
    are added first, which is the same while no step is clipped. Which state a step is credited with was not read: ours
    is the one it leads to. Source: zerzerzerz/Euphonium, euphonium/grpo/grpo_training/trainer.py.
    """
    total = outcome * group_normalized(batch.reward, batch.group, batch.counted, eps, ddof)
    advantage = total[:, None].expand(batch.mask.shape).clone()
    values = batch["process_reward"].to(advantage)
    for t in range(advantage.shape[1]):
        at = batch.mask[:, t] & batch.counted
        if bool(at.any()):
            own = group_normalized(values[:, t], batch.group, at, eps, ddof)
            advantage[:, t] += process * torch.where(at, own, 0.0)
    return torch.where(batch.mask, advantage, 0.0)
