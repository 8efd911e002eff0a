"""Credit of masked diffusion models, whose likelihood may score some actions only (UniGRPO)."""

from __future__ import annotations

from torch import Tensor

from mmrl.record import Batch
from mmrl.stages import MASKED, stage


@stage(
    "credit",
    method="mmada_unigrpo",
    paper="MMaDA (UniGRPO), arXiv 2505.15809",
    formula="loss mask = actions that the likelihood surrogate scored",
    confidence="partly",
    needs=("scored",),
    modalities=MASKED,
)
def scored_actions(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Only actions the surrogate scored enter the loss and its denominators. Returns (B, T) twice.

    Reads `scored (B, T)`, which a masked diffusion policy keeps with its rollouts.
    """
    scored = batch["scored"].to(batch.mask.device) > 0
    return advantage * scored, batch.loss_mask * scored
