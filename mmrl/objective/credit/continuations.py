"""Credit of rows that go on with a text: what stands before their beginning, or far behind it, is not theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "credit",
    paper="REFINE: reinforced fast weights with next-sequence prediction, arXiv 2602.16704",
    formula="weight A_it for begins <= t < begins + width, out of the loss elsewhere",
    confidence="partly",
    needs=("begins", "expert"),
    modalities=LANGUAGE,
)
def refine(advantage: Tensor, batch: Batch, *, width: int = 5, weight: float = 0.2) -> tuple[Tensor, Tensor]:
    """Only the actions that were compared with the text train. Returns (B, T) twice.

    width   as in shaping `refine`
    weight  of the reward beside the likelihood of the text; the authors take .4 at test time
    """
    place = torch.arange(batch.mask.shape[1], device=advantage.device)[None]
    begins = batch["begins"][:, None]
    own = (place >= begins) & (place < begins + width) & ~(batch["expert"] > 0)[:, None]
    return weight * advantage * own, batch.loss_mask * own
