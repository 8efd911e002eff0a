"""Probes that compare all rollouts of a step, over all ranks, once their advantages are known.

They read a vector of each token, which is made again in every pass over the rollouts and never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmrl.objective.credit.representation import discriminative_weights


@dataclass(frozen=True)
class BatchProbe:
    """reads     the probe whose vectors are compared, `(rows, d)`
    function  `(pieces, advantage (N,), total, **options) -> (N,)`; `pieces()` is another pass over the tokens that
              train, as (their places in N, their vectors), and `total` adds a tensor up over ranks
    """

    reads: str
    function: Callable[..., Tensor]


BATCH_PROBES = {"discriminative_weight": BatchProbe("gradient_proxy", discriminative_weights)}
