"""Whole-sequence objectives, first half: one number for each rollout, `(evaluation, batch) -> (B,)` or `(B, K)`.

A `score_objective` turns the scores of all rows of an optimizer step into a scalar. Micro-batches then add
`(dJ/ds) s`, which has exactly the gradient of the whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import masked_mean
from mmrl.objective.numerics import current_log_probs, log_ratio_to, safe_exp
from mmrl.objective.regularizers.kl import ESTIMATORS
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, Need, stage

Reduce = Literal["sum", "mean"]


def _reduced(values: Tensor, mask: Tensor, reduce: Reduce) -> Tensor:
    if reduce not in ("sum", "mean"):
        raise ConfigError(f"reduce is {reduce!r}; expected 'sum' or 'mean'")
    return values.sum(1) if reduce == "sum" else masked_mean(values, mask)


@stage(
    "score",
    method="pacs",
    paper="sequence likelihood",
    formula="s_i = sum_t lp_new_it, or its mean",
    confidence="verified",
)
def log_prob(evaluation: Evaluation, batch: Batch, *, reduce: Reduce = "mean") -> Tensor:
    """Log-probability of the sequence. Returns (B,).

    reduce  "mean" is length-normalised, "sum" is the likelihood itself and favours short answers
    """
    return _reduced(current_log_probs(evaluation, batch), batch.mask, reduce)


@stage(
    "score",
    method="pacs",
    paper="PACS, arXiv 2509.02522; REAL, arXiv 2602.05630",
    formula="s_i = sum_t (lp_new_it - lp_old_it), or its mean",
    confidence="verified",
)
def log_ratio(evaluation: Evaluation, batch: Batch, *, reduce: Reduce = "sum") -> Tensor:
    """Log-ratio of the sequence to the policy that sampled it. Returns (B,).

    reduce  "sum" or "mean" over the sequence, as the objective wants it
    """
    return _reduced(log_ratio_to(evaluation, batch), batch.mask, reduce)


@stage(
    "score",
    method="copg",
    paper="Direct Preference Optimization, arXiv 2305.18290; CoPG, arXiv 2406.19185",
    formula="d_i = sum_t (lp_new_it - lp_ref_it), or its mean",
    confidence="verified",
    needs=("ref_log_probs",),
)
def reference_log_ratio(evaluation: Evaluation, batch: Batch, *, reduce: Reduce = "sum") -> Tensor:
    """Log-ratio of the sequence to the reference policy. Returns (B,).

    reduce  "sum" (DPO) or "mean" over the sequence
    """
    return _reduced(log_ratio_to(evaluation, batch, batch["ref_log_probs"]), batch.mask, reduce)


@stage(
    "score",
    "disco",
    paper="DisCO, arXiv 2505.12366",
    formula="s_i = mean_t lp_new_it or mean_t r_it, with the row's KL(old || new) and its length",
    confidence="verified",
)
def disco_score(
    evaluation: Evaluation, batch: Batch, *, kind: Literal["log_prob", "ratio"] = "log_prob",
    kl: Literal["k1", "k3"] = "k3",
) -> Tensor:  # fmt: skip
    """The score of a rollout, and what the KL constraint of the batch needs. Returns (B, 3).

    kind  "log_prob" (temperature 10) or "ratio" (temperature 1)
    kl    estimator of the constraint: "k1", -log r, as the authors' scripts have it (`ppo_kl_type=kl`), or "k3",
          r - 1 - log r, which is never negative

    Columns: score; sum over actions of the estimate; number of actions. For score objective `disco`.
    """
    apart = log_ratio_to(evaluation, batch)
    if kind not in ("log_prob", "ratio"):
        raise ConfigError(f"score disco: kind is {kind!r}; expected 'log_prob' or 'ratio'")
    values = current_log_probs(evaluation, batch) if kind == "log_prob" else safe_exp(apart)
    if kl not in ("k1", "k3"):
        raise ConfigError(f"score disco: kl is {kl!r}; expected 'k1' or 'k3'")
    drift = (ESTIMATORS[kl](-apart) * batch.mask).sum(1)
    return torch.stack([masked_mean(values, batch.mask), drift, batch.mask.sum(1).to(drift)], dim=1)


@stage(
    "score",
    "matching_loss",
    method="dgpo_direct",
    paper="DGPO, arXiv 2510.08425; CRD, arXiv 2603.14128; GDRO, arXiv 2601.02036",
    formula="s_ij = -mean((v_theta - v)^2) at draw j of time and noise",
    needs=lambda *, weighted: {"loss": Need("matching_loss", weights="current", options=_weighted(weighted))},
    modalities=FLOW,
    confidence="verified",
)
def negative_matching_loss(evaluation: Evaluation, batch: Batch, *, weighted: bool = False) -> Tensor:
    """Minus the flow-matching loss of a rollout's clean output. Returns (B, J).

    weighted  each loss is divided by the mean absolute error, which carries no gradient (CRD)
    """
    return -evaluation["loss"]


def _weighted(weighted: bool) -> tuple:
    return (("weighted", True),) if weighted else ()
