"""BranchGRPO's pruning: steps of a tree that are sampled and valued, and left out of the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import group_count, group_rank
from mmrl.objective.prefixes import leaves
from mmrl.record import Batch
from mmrl.stages import FLOW, stage

PAPER = "BranchGRPO: stable and efficient GRPO with structured branching, arXiv 2509.06040"
KEEPS = ("best", "extremes")


@stage(
    "credit",
    method="branchgrpo",
    paper=PAPER,
    formula="no loss on steps of a window of `window` depths that moves by one every `every` training steps",
    confidence="partly",
    modalities=FLOW,
)
def depth_pruning(
    advantage: Tensor,
    batch: Batch,
    *,
    window: int = 4,
    every: int = 30,
    start: int = 9,
    stop: int = 15,
) -> tuple[Tensor, Tensor]:
    """Leaves a moving window of denoising steps out of the loss. Returns the advantage and the loss mask.

    window       steps that are left out
    every        training steps until the window moves by one
    start, stop  the first step of the window at the beginning, and where it stays: the paper, second-hand, moves from
                 the last split to later steps, the authors' code from late steps down to the last split (start > stop)
    """
    if window < 1 or every < 1:
        raise ConfigError(f"depth_pruning: window={window}, every={every}; expected at least 1 and 1")
    moved = min(batch.step // every, abs(stop - start))
    first = start + (moved if stop >= start else -moved)
    place = torch.arange(advantage.shape[1], device=advantage.device)
    kept = (place < first) | (place >= first + window)
    return advantage, batch.loss_mask * kept


@stage(
    "credit",
    method="branchgrpo",
    paper=PAPER,
    formula="behind the steps of the last split only the best leaf of each parent, or best and worst quarter of a tree",
    confidence="partly",
    modalities=FLOW,
)
def width_pruning(advantage: Tensor, batch: Batch, *, keep: str = "best", share: float = 0.25) -> tuple[Tensor, Tensor]:
    """Leaves some leaves' steps behind those of their last split out of the loss; the split and what is shared stay.

    keep   best: of the leaves of one parent the one of the highest reward; extremes: the `share` best and as many
           worst of the tree

    A row that shares nothing with another is its own parent: `best` keeps it. The authors' code chooses single steps
    by their advantage where ours chooses leaves: the better half of each leaf's own, or of all of a tree's.
    """
    if keep not in KEEPS:
        raise ConfigError(f"width_pruning: {unknown('keep', keep, KEEPS)}")
    if not 0 < share <= 0.5:
        raise ConfigError(f"width_pruning: share={share}; expected more than 0 and at most .5")
    assert batch.owner is not None and batch.group is not None and batch.reward is not None
    where = batch.counted & ~torch.isnan(batch.reward)
    place = torch.arange(advantage.shape[1], device=advantage.device)
    split = torch.where(leaves(batch) > 1, place, -1).amax(1)
    if keep == "best":
        alone = -1 - torch.arange(len(batch), device=advantage.device)
        drawer = batch.owner.gather(1, split.clamp(min=0)[:, None]).squeeze(1)
        family = torch.stack([batch.group, split, torch.where(split < 0, alone, drawer)], 1)
        _, parent = torch.unique(family, dim=0, return_inverse=True)
        chosen = _rank(-batch.reward, parent, where) == 0
    else:
        few = (group_count(batch.group, where) * share).ceil()
        best = _rank(-batch.reward, batch.group, where) < few
        chosen = best | (_rank(batch.reward, batch.group, where) < few)
    return advantage, batch.loss_mask * ((chosen & where)[:, None] | (place <= split[:, None] + 1))


def _rank(values: Tensor, group: Tensor, where: Tensor) -> Tensor:
    """(B,) 0 for the smallest counted value of the row's group."""
    return group_rank(torch.where(where, values, torch.full_like(values, torch.inf)), group)
