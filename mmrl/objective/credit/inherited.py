"""Rows that begin in others, and what of them is theirs."""

from __future__ import annotations

from torch import Tensor

from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "credit",
    method="cure",
    paper="CURE: critical-token re-generation, 2025; code bytedance/CURE",
    formula="A_it 1[t was drawn for row i]",
    confidence="partly",
)
def own_actions(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What a row inherits of the row it begins in is context: it neither learns nor counts. Returns (B, T) twice.

    Without it every action of a tree learns from all rows through it.
    """
    own = (batch.owner == batch.member[:, None]) & batch.mask
    return advantage * own, batch.loss_mask * own
