"""KL to the frozen reference, estimated on the sampled actions.

`D = lp_new - lp_ref`: k1 = D, k2 = D^2 / 2, k3 = exp(-D) + D - 1 (Schulman, "Approximating KL divergence").
As a loss, k1's own gradient has zero mean (useless), k2's is the right on-policy KL gradient, k3's is
`1 - exp(-D)`: bounded on one side, biased, equal to first order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.numerics import at_least_float32, log_ratio_to, safe_exp
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, NEEDS, Need, stage

ANCHOR_KL = Need("reference_kl", weights="current", options=(("to", "anchor"),))
"""The KL of a step to the anchor's step."""


def k1(difference: Tensor) -> Tensor:
    return difference


def k2(difference: Tensor) -> Tensor:
    return difference**2 / 2


def k3(difference: Tensor) -> Tensor:
    return safe_exp(-difference) - 1 + difference


def k3_plus(difference: Tensor) -> Tensor:
    """k3 in value, k2 in gradient (verl)."""
    squared = k2(difference)
    return k3(difference).detach() + squared - squared.detach()


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3_plus": k3_plus}


@stage(
    "regularizer",
    method="grpo",
    paper="DeepSeekMath (GRPO), arXiv 2402.03300; estimators: Schulman 2020",
    formula="k3: exp(d) - d - 1 with d = lp_ref - lp_new",
    confidence="verified",
    needs=("ref_log_probs",),
)
def kl(
    evaluation: Evaluation, batch: Batch, *, estimator: str = "k3", importance: bool = False,
    value_bound: float | None = None,
) -> Tensor:  # fmt: skip
    """KL penalty in the loss. Returns (B, T), aggregated like the objective.

    estimator    "k1", "k2", "k3", or "k3_plus" (value of k3, gradient of k2: verl's `k3+`)
    importance   multiply by the ratio to the old policy, gradient through it too (TRL `use_bias_correction_kl`)
    value_bound  clamp the estimate to +-this; verl uses 10, TRL and we do not clamp

    The log-difference is clamped to +-20 inside the exponential only. Usual coefficients: 0 to 0.04.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"kl: {unknown('estimator', estimator, ESTIMATORS)}")
    penalty = ESTIMATORS[estimator](log_ratio_to(evaluation, batch, at_least_float32(batch["ref_log_probs"])))
    if importance:
        penalty = penalty * safe_exp(log_ratio_to(evaluation, batch))
    if value_bound is not None:
        penalty = penalty.clamp(-value_bound, value_bound)
    return torch.where(batch.mask, penalty, torch.zeros_like(penalty))


@stage(
    "shaping",
    method="rloo",
    paper="RLOO, arXiv 2402.14740; KL in the reward",
    formula="r_i - beta sum_t (lp_old_it - lp_ref_it)",
    confidence="verified",
    needs=("ref_log_probs",),
)
def kl_in_reward(batch: Batch, *, beta: float = 0.05) -> Tensor:
    """Subtracts the sequence's k1 estimate from the reward, where its gradient is the true KL gradient. (B,)

    beta  strength; TRL's RLOO uses 0.05
    """
    apart = (at_least_float32(batch.old_log_probs) - at_least_float32(batch["ref_log_probs"])) * batch.mask
    return batch.reward - beta * apart.sum(1).to(batch.reward)


def _step_kl(*, to: str = "reference", **_: object) -> dict[str, Need]:
    if to not in ("reference", "anchor"):
        raise ConfigError(f"gaussian_kl: {unknown('to', to, ('reference', 'anchor'))}")
    return {"reference_kl": NEEDS["reference_kl"] if to == "reference" else ANCHOR_KL}


@stage(
    "regularizer",
    method="flow_grpo",
    paper="Flow-GRPO, arXiv 2505.05470",
    formula="mean((mu_new - mu_ref)^2) / (2 std^2)",
    confidence="verified",
    needs=_step_kl,
    modalities=FLOW,
)
def gaussian_kl(
    evaluation: Evaluation, batch: Batch, *, to: str = "reference", start: float = 1.0, over: int = 100
) -> Tensor:
    """Exact KL of each step to another model's step. Returns (B, T), aggregated like the objective.

    to     reference, the model before training, or anchor, the copy that `policy.anchor` keeps (SAGE-GRPO)
    start  share of the coefficient that holds at first; it grows to all of it, by one factor a training step
    over   training steps until it is all

    `policy.kl` chooses the scale: with "legacy_no_dt" a published coefficient keeps its meaning (times h).
    """
    return grown(batch, start, over) * torch.where(batch.mask, evaluation["reference_kl"], 0.0)


@stage(
    "regularizer",
    method="sage_grpo",
    paper="SAGE-GRPO: manifold-aware exploration, arXiv 2603.21872",
    formula="lp_old - lp_new",
    confidence="verified",
)
def old_policy_kl(evaluation: Evaluation, batch: Batch, *, start: float = 1.0, over: int = 100) -> Tensor:
    """Sampled KL of the rollout policy to the new one. Returns (B, T).

    start, over  as in `gaussian_kl`

    Zero in value on-policy, but with a gradient for each sample (zero in expectation): do not leave it out there.
    """
    return -grown(batch, start, over) * log_ratio_to(evaluation, batch)


def grown(batch: Batch, start: float, over: int) -> float:
    """The share of its coefficient that a penalty has at the batch's training step: start^(1 - step / over), at most 1.

    SAGE-GRPO's grows from 1e-7 to a cap of 1e-5; by what rule was not read, and this one is ours.
    """
    if not 0 < start <= 1 or over < 1:
        raise ConfigError(f"start={start:g}, over={over}: expected a share above 0 and up to 1, and at least 1 step")
    return start ** max(0.0, 1 - batch.step / over)
