"""Pulls for data that is not quite on-policy (OPMD, AsymRE, ReMix), and plain imitation of some rows."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl.columns import Column, columns
from mmrl.errors import ConfigError, unknown
from mmrl.objective.aggregation import row_filter
from mmrl.objective.numerics import at_least_float32, current_log_probs, log_ratio_to
from mmrl.objective.regularizers.kl import ESTIMATORS
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, Need, stage


@stage(
    "regularizer",
    method="rec_opmd_asymre",
    paper="OPMD, in: Group-relative REINFORCE is secretly off-policy, arXiv 2509.24203",
    formula="(lp_new - lp_old)^2",
    confidence="verified",
)
def opmd(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Squared log-ratio to the policy that sampled. Returns (B, T). Usual coefficient: 0.1.

    Goes with trust region `rec` and advantage `dr_grpo`. Source: Trinity-RFT.
    """
    return log_ratio_to(evaluation, batch) ** 2


@stage(
    "regularizer",
    method="rec_opmd_asymre",
    paper="AsymRE, in: Group-relative REINFORCE is secretly off-policy, arXiv 2509.24203",
    formula="-lp_new",
    confidence="verified",
)
def asymre(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Imitates the data a little: the same as a baseline lowered by the coefficient. Returns (B, T). Usually 0.1.

    Goes with trust region `rec` and advantage `dr_grpo`. Source: Trinity-RFT.
    """
    return -current_log_probs(evaluation, batch)


@stage(
    "regularizer",
    method="remix_off_policy",
    paper="ReMix: mix-policy proximal gradient, arXiv 2507.06892",
    formula="share KL(new || base) + (1 - share) KL(new || previous)",
    confidence="partly",
    needs=("ref_log_probs",),
)
def kl_convex(evaluation: Evaluation, batch: Batch, *, share: float = 0.5, estimator: str = "k3") -> Tensor:
    """KL towards the base model and towards the policy that sampled, mixed. Returns (B, T).

    share      of the base model; 1 is regularizer `kl`
    estimator  as in `kl`

    Source: abstract and digests; the two-KL form is ours. The mix of fresh and stored rollouts is a matter of the
    replay buffer: 40 percent from the last two policies.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"kl_convex: {unknown('estimator', estimator, ESTIMATORS)}")
    estimate = ESTIMATORS[estimator]
    base = estimate(log_ratio_to(evaluation, batch, at_least_float32(batch["ref_log_probs"])))
    return (share * base + (1 - share) * estimate(log_ratio_to(evaluation, batch))) * batch.mask


@stage(
    "regularizer",
    method="lightningrl",
    paper="LightningRL, arXiv 2603.13319; DYPO, arXiv 2604.08926; ExPO, arXiv 2507.02834",
    formula="-lp_new on some rows",
    confidence="verified",
    needs=lambda *, rows="success", **_: columns("expert") if rows == "expert" else {},
)
def nll(evaluation: Evaluation, batch: Batch, *, rows: Literal["all", "success", "expert"] = "success") -> Tensor:
    """Negative log-likelihood of successful rollouts, or of demonstrations. Returns (B, T).

    rows  "success", "expert" (column `expert (B,)`: teacher traces, self-explanations), "all"

    Give it `aggregation: rows_token_mean` for a mean over those rows alone. LightningRL: 0.1 on successes.
    """
    loss = -current_log_probs(evaluation, batch)
    return loss if rows == "all" else loss * row_filter(batch, rows)[:, None]


def _otr_needs(
    *, samples: int = 256, temperature: float = 1.3, miss: float = -0.1, rows: str = "expert", **_
) -> dict[str, Need | Column]:
    options = (("miss", miss), ("samples", samples), ("temperature", temperature))
    drawn = Need("one_token_rollout", weights="current", options=options)
    return {"one_token_rollout": drawn, **(columns("expert") if rows == "expert" else {})}


@stage(
    "regularizer",
    paper="One-token rollout (OTR), arXiv 2509.26313",
    formula="-(1/K) sum_k R(a_k) lp_new(a_k), a_k drawn at each position, R = 1 for the ground truth else `miss`",
    confidence="partly",
    needs=_otr_needs,
    modalities=LANGUAGE,
)
def otr(
    evaluation: Evaluation,
    batch: Batch,
    *,
    samples: int = 256,
    temperature: float = 1.3,
    miss: float = -0.1,
    rows: Literal["all", "success", "expert"] = "expert",
) -> Tensor:
    """Imitation as policy gradient: each token of a demonstration is a group of one-token rollouts. Returns (B, T).

    samples      candidates at each position
    temperature  of the candidates; higher explores
    miss         reward of a wrong candidate
    rows         as in `nll`

    Source: abstract and a summary; defaults from memory. Ours: candidates by systematic sampling.
    """
    loss = -at_least_float32(evaluation["one_token_rollout"]) * batch.mask
    return loss if rows == "all" else loss * row_filter(batch, rows)[:, None]
