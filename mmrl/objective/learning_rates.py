"""How much of the learning rate an optimizer step deserves (VCPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import engine_ratio
from mmrl.record import Batch
from mmrl.stages import stage


def effective_share(weights: Tensor) -> Tensor:
    """Effective sample size of importance weights `(B,)` over their number: 1 for equal weights."""
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum()).clamp(min=torch.finfo(weights.dtype).tiny)


@stage(
    "learning_rate",
    paper="VCPO: stable asynchrony, arXiv 2602.17616",
    formula="min(1, ESS / (B target))^power, ESS = (sum W)^2 / sum W^2 of the sequence ratios trainer / sampler",
    confidence="verified",
    scope="update",
    needs=("sampler_log_probs",),
)
def effective_samples(batch: Batch, *, target: float = 1.0, power: float = 0.5) -> Tensor:
    """Shrinks the step when few sequences carry most of the importance weight. Returns a scalar in (0, 1].

    target  share of effective samples at which nothing is shrunk
    power   0.5 for Adam, 1 for SGD

    Reads `sampler_log_probs`; the ratios are not clipped. Source: mit-han-lab/vcpo, staleness_utils.py.
    """
    return (effective_share(engine_ratio(batch, "sequence")[:, 0]) / target).clamp(max=1) ** power
