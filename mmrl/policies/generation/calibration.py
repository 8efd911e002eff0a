"""How much noise each step can bear: DenseGRPO's calibration of the exploration space (arXiv 2601.20218, algorithm 1).

Steps are drawn and each is credited with the reward it gains. Where gains and losses are about as many, more noise
explores more; where most samples lose (or gain), noise has left what the model knows and is taken back.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_STEP = 0.01
"""How far a level moves in a round: the paper's epsilon 2."""
BALANCED_SHARE = 0.2
"""Gains and losses may differ by less than this share of the samples. The paper's epsilon 1 is 2 samples of a number it
does not name; of 64, even steps of a fair coin differ by 2 or more nine times in ten, and noise would run down to 0."""


def imbalance(gains: Tensor, drawn: Tensor) -> Tensor:
    """(S,) by how many samples gains and losses differ.

    gains  (N, S) reward gains, NaN where unscored; drawn (N, S) bool: steps that drew noise
    """
    ahead = ((gains > 0) & drawn).sum(0) - ((gains < 0) & drawn).sum(0)
    return ahead.abs()


def calibrated(
    levels: Tensor, gains: Tensor, drawn: Tensor, *, allowed: float, by: float = SMALLEST_STEP
) -> Tensor:  # fmt: skip
    """(S,) levels after one round: `by` more where the imbalance is below `allowed`, else `by` less.

    A step without a scored sample that drew noise, such as the last, keeps its level. The smallest level is `by`: at 0
    a step would never be drawn again.
    """
    judged = (drawn & ~gains.isnan()).any(0)
    moved = torch.where(imbalance(gains, drawn) < allowed, levels + by, levels - by)
    return torch.where(judged, moved.clamp(min=by), levels)
