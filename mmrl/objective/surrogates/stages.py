"""What the surrogate likelihoods need of the optimizer: BGPO's bound, a loss over scored actions only, the ratio of
soft tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import at_least_float32, log_ratio_to, safe_exp
from mmrl.objective.surrogates.tokens import soft_token_log_prob
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, Need, stage

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


@stage(
    "ratio",
    method="soft_grpo",
    paper="SofT-GRPO, arXiv 2511.06411",
    formula="lp - lp_old, lp = mean over likely ids of -u - exp(-u), u = clip(g - log p~, -1.5, 3), on soft tokens",
    needs=lambda **_: {"kept_log_probs": Need("kept_log_probs", weights="current")},
    required=("soft", "gumbels"),
    modalities=LANGUAGE,
)
def soft_token(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Soft tokens by the density of their Gumbel noise, the others by their probability. Returns (B, T).

    Reads `soft (B, T)`, 1 on soft tokens; `gumbels (B, T, k)`, the perturbed log-probs g of the kept ids at sampling;
    and of the evaluation `kept_log_probs (B, T, k)`, the current log-probs of these ids, with gradient.
    `old_log_probs` on soft tokens is `surrogates.tokens.soft_token_log_prob` at sampling. Policies of this library
    sample discrete tokens, so a configuration that asks for it is refused; in your own loop, `compute` takes it.
    Source: zz1358m/SofT-GRPO-master, torch_functional.py.
    """
    density = soft_token_log_prob(at_least_float32(evaluation["kept_log_probs"]), at_least_float32(batch["gumbels"]))
    soft = batch.mask & (batch["soft"] != 0)
    return torch.where(soft, density - at_least_float32(batch.old_log_probs), log_ratio_to(evaluation, batch))
