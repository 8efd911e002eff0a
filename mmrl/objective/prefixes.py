"""Rollouts of a group as a prefix tree: who shares the first t actions, and what such prefixes are worth.

Independent samples share little more than their first tokens; rollouts branched from common prefixes share whole
segments. Both are read from the action ids, so no tree needs to be stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch


def action_ids(batch: Batch, asked_by: str) -> Tensor:
    """(B, T) action ids; ConfigError where actions are not ids."""
    if batch.actions is None:
        raise ConfigError(f"{asked_by} compares action ids, and this batch has none")
    return batch.actions


def extent(mask: Tensor) -> Tensor:
    """(B, T) bool: up to the last sampled action, replayed prefixes and gaps included."""
    return mask.flip(1).cummax(1).values.flip(1) if mask.shape[1] else mask


def leaves(batch: Batch) -> Tensor:
    """(B, T) how many rows go through the state a row acts in: those of its group with the same owner at t.

    1 where a row is alone, and outside the loss mask. Read from `batch.owner`, so it holds for tokens and denoising.
    """
    assert batch.owner is not None
    acts = batch.loss_mask.bool() & (batch.owner >= 0)
    rows, columns = acts.nonzero(as_tuple=True)
    state = torch.stack([batch.group[rows], columns, batch.owner[rows, columns]], 1)
    _, which, count = torch.unique(state, dim=0, return_inverse=True, return_counts=True)
    through = torch.ones(acts.shape, dtype=torch.long, device=acts.device)
    through[rows, columns] = count[which]
    return through


def shared_prefix(actions: Tensor, within: Tensor) -> Tensor:
    """(G, G, T) bool for the rows of one group: i and j agree on every action up to and including t."""
    equal = (actions[:, None] == actions[None]) & within[:, None] & within[None]
    return equal.cumprod(2).bool()


def prefix_mean(values: Tensor, batch: Batch, where: Tensor, asked_by: str) -> Tensor:
    """(B, T) mean of `values (B,)` over the counted rollouts of the group that share the actions up to t.

    0 outside the row's extent and where no counted rollout shares the prefix.
    """
    actions, within = action_ids(batch, asked_by), extent(batch.mask)
    kept = torch.where(where, values, torch.zeros_like(values))
    mean = values.new_zeros(batch.mask.shape)
    for g in torch.unique(batch.group).tolist():
        rows = (batch.group == g).nonzero().squeeze(1)
        shared = shared_prefix(actions[rows], within[rows]).to(values.dtype)
        total = torch.einsum("ijt,j->it", shared, kept[rows])
        count = torch.einsum("ijt,j->it", shared, where[rows].to(values.dtype))
        mean[rows] = total / count.clamp(min=1)
    return mean


def prefix_nodes(batch: Batch, segment: int, asked_by: str) -> Tensor:
    """(B, D + 1) long: the node a row passes at depth d, after d segments of `segment` actions; column 0 is the prompt.

    Equal numbers are the same node. A row that ends inside a segment passes a node of its own at that depth and
    keeps it at all deeper ones.
    """
    actions, within = action_ids(batch, asked_by), extent(batch.mask)
    length = within.sum(1)
    depths = max(-(-int(length.max()) // segment), 1) if len(length) else 1
    _, group = torch.unique(batch.group, return_inverse=True)
    nodes = torch.empty(len(length), depths + 1, dtype=torch.long, device=actions.device)
    nodes[:, 0] = group
    for d in range(1, depths + 1):
        width = min(d * segment, actions.shape[1])
        full = length >= d * segment
        leaf = torch.arange(len(length), device=actions.device) + 1
        key = torch.cat(
            [
                nodes[:, d - 1 : d],
                torch.where(full, torch.zeros_like(leaf), leaf)[:, None],
                torch.where(full[:, None], actions[:, (d - 1) * segment : width].long(), 0),
            ],
            dim=1,
        )
        nodes[:, d] = torch.unique(key, dim=0, return_inverse=True)[1]
    return nodes
