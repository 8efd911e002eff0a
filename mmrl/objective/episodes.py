"""Episodes of several rows: one piece of work that the policy did under several prompts, and one reward for all of it.

Two row constants say which rows belong together: `episode`, the member of the group that began it (-1 on that one
itself), and `part`, how many pieces came before. What an episode is worth is the reward of its last part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.groups import group_extreme, group_sum
from mmrl.record import Batch

COLUMNS = {"episode": -1.0, "part": 0.0}
"""What a strategy of such rows declares, with the fill of rows that say nothing."""


def episodes(batch: Batch) -> Tensor:
    """(B,) long: a number of each row's episode, different between groups."""
    assert batch.group is not None and batch.member is not None
    begun = batch["episode"].long()
    pairs = torch.stack([batch.group, torch.where(begun < 0, batch.member, begun)], dim=1)
    return torch.unique(pairs, dim=0, return_inverse=True)[1]


def last_parts(batch: Batch, where: Tensor) -> Tensor:
    """(B,) bool: of each episode the last part among the rows `where (B,)`."""
    part = batch["part"].double()
    return where & (part == group_extreme(part, episodes(batch), where))


def shared(values: Tensor, batch: Batch, where: Tensor) -> Tensor:
    """(B,) on each row the value of its episode's row among `where (B,)`, of which there is one; 0 where none."""
    return group_sum(values.nan_to_num(0), episodes(batch), where)


def with_any(where: Tensor, batch: Batch) -> Tensor:
    """(B,) bool: rows of episodes of which some row is among `where (B,)`."""
    return group_sum(where.double(), episodes(batch)) > 0
