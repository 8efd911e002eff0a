"""Credit from a teacher who reads what the student wrote: SDPO, SRPO."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.numerics import labels
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, Need, View, stage

TEACHER = View.of("beside", prompt="teacher")


def _privileged(*, weights: str = "old", **_) -> dict[str, Need]:
    return {"teacher_log_probs": Need("log_probs", under=TEACHER, weights=weights)}


def _privileged_and_entropy(*, weights: str = "old", **_) -> dict[str, Need]:
    return _privileged(weights=weights) | {"teacher_entropy": Need("entropy", under=TEACHER, weights=weights)}


def teaching(batch: Batch, bound: float) -> Tensor:
    """(B, T) lp_teacher - lp_student of each action the student drew, within +-bound; 0 outside the mask."""
    apart = (batch["teacher_log_probs"] - batch.old_log_probs).clamp(-bound, bound)
    return torch.where(batch.mask, apart, torch.zeros_like(apart))


def _check(name: str, bound: float) -> None:
    if bound <= 0:
        raise ConfigError(f"{name}: bound={bound}; expected a positive number")


@stage(
    "credit",
    paper="SDPO: self-distillation from privileged context, 2026; code lasgroup/SDPO",
    formula="A_it <- k_it on wrong rows whose group has a teacher, 0 elsewhere; k = lp(. | q, solution) - lp_old",
    confidence="partly",
    needs=_privileged,
    modalities=LANGUAGE,
)
def sdpo(
    advantage: Tensor, batch: Batch, *, bound: float = 10.0, weights: Literal["old", "reference", "ema"] = "old"
) -> tuple[Tensor, Tensor]:
    """Wrong rows learn from the policy that was told a solution; rewards only say who is wrong. Returns (B, T) twice.

    bound    of one token's k
    weights  of the teacher: "old", the policy that sampled, "ema" (the release's 0.05), or "reference"

    Pair it with rollout `privileged`. Source: lasgroup/SDPO, core_algos.py; there a divergence over the 100 likeliest
    tokens, here its single-sample form with alpha 1.
    """
    _check("sdpo", bound)
    wrong = (labels(batch) <= 0.5)[:, None]
    taught = teaching(batch, bound) * wrong
    return taught, batch.loss_mask * (wrong & (taught != 0).any(1, keepdim=True))


@stage(
    "credit",
    paper="SRPO: sample-routed policy optimisation, arXiv 2604.02288",
    formula="wrong rows of a group with a right one: w_it k_it, w = exp(-beta H^T) over its mean; all others: A_it",
    confidence="partly",
    needs=_privileged_and_entropy,
    scope="batch",
    modalities=LANGUAGE,
)
def srpo(
    advantage: Tensor,
    batch: Batch,
    *,
    beta: float = 1.0,
    bound: float = 10.0,
    weights: Literal["old", "reference", "ema"] = "old",
) -> tuple[Tensor, Tensor]:
    """Right rows keep the group's advantage; wrong ones with a teacher follow it where it is sure. (B, T) twice.

    beta     how much less an unsure teacher says; 0 weighs all tokens alike
    others   as in `sdpo`

    Pair it with rollout `privileged` without a column, and `token_mean`. Source: the paper's text, whose distillation
    is SDPO's divergence; here its single-sample form.
    """
    _check("srpo", bound)
    right = labels(batch) > 0.5
    sibling = torch.zeros_like(right)
    for group in torch.unique(batch.group[right & batch.counted]).tolist():
        sibling |= batch.group == group
    routed = ((~right & sibling & batch.trained)[:, None] & batch.mask).to(advantage)
    sure = torch.exp(-beta * batch["teacher_entropy"]) * routed
    sure = sure / (sure.sum() / routed.sum().clamp(min=1)).clamp(min=1e-12)
    return torch.where(routed > 0, sure * teaching(batch, bound), advantage) * batch.mask, batch.loss_mask
