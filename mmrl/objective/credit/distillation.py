"""Credit from a teacher who reads what the student wrote (SDPO, SRPO, OPD, vOPD), or from offline rows (HNPG)."""

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
    bound    and `weights` as in `sdpo`

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


TAUGHT = Need("log_probs", weights="teacher")


def _taught(**_) -> dict[str, Need]:
    return {"teacher_log_probs": TAUGHT}


def _taught_and_valued(*, top_k: int = 0, **_) -> dict[str, Need]:
    return _taught() | {"teacher_value": Need("teacher_value", options=(("top_k", top_k),) if top_k else ())}


@stage(
    "credit",
    paper="On-policy distillation (OPD): GKD, arXiv 2306.13649; the single-sample form of the reverse KL",
    formula="A_it <- a A_it + b k_it, k = clip(lp_T - lp_old)",
    confidence="partly",
    needs=_taught,
    modalities=LANGUAGE,
)
def opd(
    advantage: Tensor, batch: Batch, *, reward: float = 0.0, teacher: float = 1.0, bound: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Every token is worth what the teacher finds it likelier than the student does. Returns (B, T) twice.

    reward   a, of the group's advantage: 0 is distillation alone, 1 adds it to the method it stands behind
    teacher  b
    bound    of one token's k, either way

    `policy.teacher` names who teaches. A teacher that is the student gives 0 everywhere.
    """
    _check("opd", bound)
    return reward * advantage * batch.mask + teacher * teaching(batch, bound), batch.loss_mask


@stage(
    "credit",
    paper="vOPD: KL for a KL, on-policy distillation with a control variate baseline, arXiv 2605.07865",
    formula="A_it <- a A_it + b (k_it - V_it), V = sum_v pi(v) (lp_T(v) - lp(v)) = -KL(pi || pi_T), detached",
    confidence="partly",
    needs=_taught_and_valued,
    modalities=LANGUAGE,
)
def vopd(
    advantage: Tensor, batch: Batch, *, reward: float = 0.0, teacher: float = 1.0, bound: float = 10.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """`opd` less what the teacher would say of the student's tokens on average. Returns (B, T) twice.

    reward, teacher, bound  as in `opd`; k and V are each held within +-bound
    top_k                   V is summed over so many of the student's likeliest tokens alone; 0: over all

    The baseline says nothing about the token drawn, so the gradient stays that of `opd` in expectation. Its variance is
    mostly smaller and may be larger where the student is nearly sure (`tests/objective/test_distillation.py`). It costs
    a second pass of both policies, which compares whole distributions.
    """
    _check("vopd", bound)
    value = torch.where(batch.mask, batch["teacher_value"].clamp(-bound, bound), torch.zeros_like(advantage))
    own = (teaching(batch, bound) - value) * batch.mask
    return reward * advantage * batch.mask + teacher * own, batch.loss_mask


@stage(
    "credit",
    paper="HNPG: hybrid natural policy gradient of offline and on-policy data, 2023",
    formula="offline rows: lam min(max(A, 0), most); on-policy rows: A",
    confidence="reconstructed",
    needs=("expert",),
    modalities=LANGUAGE,
)
def hnpg(advantage: Tensor, batch: Batch, *, share: float = 0.1, most: float = 2.0) -> tuple[Tensor, Tensor]:
    """Offline rows add a second gradient, of those that did better than the group. Returns (B, T) twice.

    share  lam, of the offline gradient: 0 is the method without it
    most   an offline row's advantage is at most this

    Pair it with rollout `demonstrations`: rows of column `expert` are the offline ones. On-policy rows are never
    touched, so what is known of the plain method does not rest on the data. Source: abstract; the core is ours.
    """
    if share < 0 or most <= 0:
        raise ConfigError(f"hnpg: share={share}, most={most}; expected 0 or more, and above 0")
    offline = (batch["expert"] > 0)[:, None]
    return torch.where(offline, share * advantage.clamp(0, most), advantage), batch.loss_mask
