"""What the surrogate likelihoods need of the optimizer: BGPO's bound, and a loss over scored actions only."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import safe_exp
from mmrl.record import Batch, Evaluation
from mmrl.stages import stage

MASKED_DIFFUSION = ("masked_diffusion",)


@stage(
    "trust_region",
    paper="BGPO: Boundary-Guided Policy Optimization, arXiv 2510.11683",
    formula="A >= 0: (1 + e_j) A; A < 0: exp(e_j) A, e_j = ELBO draw of the new policy minus the old",
    modalities=MASKED_DIFFUSION,
)
def bgpo(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """A lower bound that is a sum over Monte-Carlo draws, so memory does not grow with them. Returns (B, J).

    The action axis holds J draws of the ELBO (surrogate `monte_carlo`); pair it with ratio `token` and
    `sequence_mean`. Tangent below exp for positive advantages, Jensen for negative ones; no clip. Equal to the
    ELBO objective in value and gradient on policy. Source: the paper's equations 9 to 14.
    """
    advantage = batch.advantage
    return torch.where(advantage >= 0, 1 + log_ratio, safe_exp(log_ratio)) * advantage


@stage(
    "credit",
    method="mmada_unigrpo",
    paper="MMaDA (UniGRPO), arXiv 2505.15809",
    formula="loss mask = actions that the likelihood surrogate scored",
    confidence="partly",
    required=("scored",),
    modalities=MASKED_DIFFUSION,
)
def scored_actions(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Only actions the surrogate scored enter the loss and its denominators. Returns (B, T) twice.

    Reads `scored (B, T)`, which a masked diffusion policy keeps with its rollouts.
    """
    scored = batch["scored"].to(batch.mask.device) > 0
    return advantage * scored, batch.loss_mask * scored
