"""Regularizers of single log-probs: rare tokens that must survive, wrong answers that must not stay likely."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.advantages.robust import successes
from mmrl.objective.credit.tokens import top_count, training_tokens
from mmrl.objective.groups import masked_mean
from mmrl.objective.numerics import current_log_probs, log_ratio_to, row_uniform
from mmrl.objective.regularizers.kl import k3
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, Need, stage


def _least_likely(batch: Batch, *, share: float) -> dict[str, Tensor]:
    """The `share` of an optimizer step's negative tokens that were least likely when sampled; none if only one."""
    chosen = torch.zeros_like(batch.mask)
    for update in torch.unique(batch.update).tolist():
        negative = training_tokens(batch) & (batch.advantage < 0) & (batch.update == update)[:, None]
        count = int(share * int(negative.sum()))
        if count > 1:
            chosen |= top_count(-batch.old_log_probs, negative, count, row_uniform(batch, "lp_reg"))
    return {"lp_reg_chosen": chosen}


@stage(
    "regularizer",
    paper="Lp-Reg: low-probability regularization, 2025",
    formula="k3(lp, log q) where A < 0, lp among the lowest rho of them, and lp < log q; q = p_old >= kappa max p_old, "
    "renormalised",
    confidence="verified",
    needs=lambda *, kappa=0.02, fixed=False, **_: {
        "min_p_log_probs": Need("min_p_log_probs", options=(("fixed", fixed), ("kappa", kappa)))
    },
    scope="update",
    modalities=LANGUAGE,
    prepared=_least_likely,
)
def lp_reg(
    evaluation: Evaluation, batch: Batch, *, kappa: float = 0.02, share: float = 0.01, fixed: bool = False
) -> Tensor:
    """Rare but plausible tokens of wrong rollouts are kept from being erased. (B, T)

    kappa  a token is plausible with at least this share of the likeliest token's probability
    share  of the negative tokens that is protected: .01 (14B) or .005 (32B)
    fixed  plausible means p >= kappa instead

    Coefficient 1, with clip low 1 and high 9, under which the clipped term of a negative token is already the
    unclipped one the paper asks for. Source: the authors' code (CarlanLark/Lp-Reg-dev). Ours: the lowest are chosen
    over the optimizer step by the policy that sampled (release: one micro-batch, current policy).
    """
    chosen = batch["lp_reg_chosen"] & (evaluation.log_probs.detach() < batch["min_p_log_probs"])
    difference = log_ratio_to(evaluation, batch, batch["min_p_log_probs"])
    return k3(torch.where(chosen, difference, torch.zeros_like(difference)))


@stage(
    "regularizer",
    paper="unlikelihood training lifted to sequences",
    formula="-log(1 - exp(mean_t lp)) for wrong rollouts",
    confidence="reconstructed",
    needs=("success",),
    modalities=LANGUAGE,
)
def sequence_unlikelihood(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Confident errors are pushed hardest: gradient weight e^l / (1 - e^l). (B, T), constant along a row.

    The mean log-prob l is clamped to -1e-4. Usual coefficient .1, with `aggregation: sequence_mean`.
    """
    likelihood = masked_mean(current_log_probs(evaluation, batch), batch.mask).clamp(max=-1e-4)
    penalty = -torch.log(-torch.expm1(likelihood))
    wrong = ~successes(batch, "sequence_unlikelihood") & ~torch.isnan(batch.success)
    return (penalty * wrong)[:, None] * batch.mask
