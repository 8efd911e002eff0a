"""The bound of masked diffusion models, whose likelihood is a sum of random draws (BGPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import safe_exp
from mmrl.record import Batch, Evaluation
from mmrl.stages import MASKED, stage


@stage(
    "trust_region",
    paper="BGPO: Boundary-Guided Policy Optimization, arXiv 2510.11683",
    formula="A >= 0: (1 + e_j) A; A < 0: exp(e_j) A, e_j = ELBO draw of the new policy minus the old",
    confidence="verified",
    modalities=MASKED,
)
def bgpo(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """A lower bound that is a sum over Monte-Carlo draws, so memory does not grow with them. Returns (B, J).

    The action axis holds J draws of the ELBO (surrogate `monte_carlo`); pair it with ratio `token` and
    `sequence_mean`. Tangent below exp for positive advantages, Jensen for negative ones; no clip. Equal to the
    ELBO objective in value and gradient on policy. Source: the paper's equations 9 to 14.
    """
    advantage = batch.advantage
    return torch.where(advantage >= 0, 1 + log_ratio, safe_exp(log_ratio)) * advantage
