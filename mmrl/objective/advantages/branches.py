"""Advantages of a denoising tree: a state is worth the leaves below it and is compared with the states of its depth."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import degenerate, group_average, group_normalized, group_sum, representatives
from mmrl.record import Batch
from mmrl.stages import FLOW, stage

FUSIONS = ("uniform", "path")


@stage(
    "advantage",
    paper="BranchGRPO: stable and efficient GRPO with structured branching, arXiv 2509.06040",
    formula="A_n = (V_n - mean_d) / (std_d + eps) over the states n of depth d of one tree; V_n = sum_l w_l r_l over "
    "the leaves below n, w uniform or softmax of beta times the log-prob of the path from n to l",
    confidence="partly",
    grain="action",
    modalities=FLOW,
)
def branchgrpo(
    batch: Batch, *, fusion: str = "uniform", beta: float = 1.0, eps: float = 1e-8, tolerance: float = 1e-6
) -> Tensor:
    """The step that leads to a state earns how much better that state's leaves are than those beside it. (B, T)

    fusion     uniform: leaves below a state count alike; path: by how likely the policy was to reach them
    beta       sharpness of `path`; 0 is uniform
    tolerance  states of one depth whose values lie closer earn nothing, and so does one that stands alone

    The tree is read from `batch.owner`: rows of a group whose action t was drawn by the same member go through one
    state. A state enters the statistics once, however many leaves it has. Uniform fusion, normalisation and tolerance
    as the authors' code (Fredreic1849/BranchGRPO, train_branchgrpo_flux.py). Its fusion by path is a softmax over the
    two children of each split in turn; ours goes over all leaves at once, after second-hand notes on the paper.
    """
    if fusion not in FUSIONS:
        raise ConfigError(f"branchgrpo: {unknown('fusion', fusion, FUSIONS)}")
    assert batch.owner is not None and batch.group is not None and batch.reward is not None
    # in double precision, in which means of the same rewards are the same in any order
    reward, where = batch.reward.nan_to_num(0).double(), batch.counted & ~torch.isnan(batch.reward)
    paths = (batch.old_log_probs.to(reward) * batch.mask).flip(1).cumsum(1).flip(1)
    advantage = torch.zeros_like(paths)
    for t in range(batch.mask.shape[1]):
        rows = (batch.mask[:, t] & where).nonzero().squeeze(1)
        if not len(rows):
            continue
        group = batch.group[rows]
        _, state = torch.unique(torch.stack([group, batch.owner[rows, t]], 1), dim=0, return_inverse=True)
        after = paths[rows, t] - batch.old_log_probs[rows, t].to(reward)
        value = fused(reward[rows], state, beta * after if fusion == "path" else torch.zeros_like(after))
        once = torch.zeros_like(rows, dtype=torch.bool)
        once[representatives(state)] = True
        normal = group_normalized(value, group, once, eps)
        normal = torch.where(once & ~degenerate(value, group, once, tolerance), normal, 0.0)
        advantage[rows, t] = group_sum(normal, state)
    return advantage.to(batch.reward)


def fused(reward: Tensor, state: Tensor, score: Tensor) -> Tensor:
    """(N,) mean reward of the leaves of one state, weighted by the softmax of their scores."""
    _, which = torch.unique(state, return_inverse=True)
    top = score.new_full((len(state),), -torch.inf).scatter_reduce_(0, which, score, "amax")
    weight = (score - top[which]).exp()
    return group_average(reward, weight, state)
