"""Perception regularizers: the answer must owe its likelihood to the image, or learn from an expert's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.objective.credit.perception import view_of
from mmrl.objective.credit.tokens import progress
from mmrl.objective.numerics import at_least_float32, log_ratio_to
from mmrl.objective.regularizers.kl import k3
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, Need, stage

PAPO_VIEW = {"kind": "patch_black", "share": 0.6, "size": 14}
NOISY = {"kind": "noise", "std": 65.0}


def _perturbed(*, view: str | Mapping[str, Any], **_) -> dict[str, Need]:
    return {"perturbed_log_probs": Need("log_probs", under=view_of(view))}


@stage(
    "regularizer",
    paper="PAPO: Perception-Aware Policy Optimization, arXiv 2507.06448",
    formula="-k3(lp, sg lp_masked): divergence from the masked image is maximised",
    confidence="verified",
    needs=_perturbed,
    modalities=LANGUAGE,
)
def papo(
    evaluation: Evaluation, batch: Batch, *, cap: float | None = None, view: str | Mapping[str, Any] = PAPO_VIEW
) -> Tensor:
    """Tokens should become likelier with the image than with the masked one. (B, T)

    cap   largest divergence of a token that is still pushed; None: no cap
    view  the corrupted prompt; by default 60% of the 14-pixel squares are blacked

    Usual coefficient .01, with `sampled_entropy` at .03 against the collapse that maximisation causes. The masked
    log-probs are those of the policy that sampled and carry no gradient, as in the released default, so its
    second entropy term (on them) has none either and is left out. Source: the authors' code.
    """
    divergence = k3(log_ratio_to(evaluation, batch, batch["perturbed_log_probs"]))
    return -(divergence if cap is None else divergence.clamp(max=cap)) * batch.mask


@stage(
    "regularizer",
    "q_hawkeye_perception",
    paper="Q-Hawkeye: Reliable Visual Policy Optimization for Image Quality Assessment, arXiv 2601.22920",
    formula="-w k3(lp, sg lp_degraded), w = .5 (1 + cos(pi e / E0)) until E0, then 0",
    confidence="verified",
    method="q_hawkeye",
    needs=_perturbed,
    modalities=LANGUAGE,
)
def q_hawkeye_perception(
    evaluation: Evaluation, batch: Batch, *, until: float = 1 / 3, view: str | Mapping[str, Any] = NOISY
) -> Tensor:
    """PAPO's divergence against a degraded image, fading out over the first part of the run. (B, T)

    until  share of the run after which it is 0 (the paper: 5 of 15 epochs)
    view   noise (std 65), blur (radius 4), jpeg (quality 5) or darken (.5) in the paper

    Usual coefficient .0001. The code's two further "entropy" terms are sequence log-likelihoods; the one with
    gradient is `sampled_entropy` at .001 under `aggregation: sequence_sum`. Source: the authors' code.
    """
    done = progress(batch) / until
    weight = 0.5 * (1 + math.cos(math.pi * done)) if done < 1 else 0.0
    return -weight * k3(log_ratio_to(evaluation, batch, batch["perturbed_log_probs"])) * batch.mask


@stage(
    "regularizer",
    paper="CalibRL: controllable exploration with an expert baseline, 2026",
    formula="|A_i| LeakyReLU(-y_i (lp - sg lp_expert), slope), y = +1 for right and -1 for wrong rollouts",
    confidence="verified",
    needs=("expert_log_probs",),
    modalities=LANGUAGE,
)
def calibrl(evaluation: Evaluation, batch: Batch, *, slope: float = 0.5, right_above: float = 0.1) -> Tensor:
    """Right rollouts are pushed above the expert's likelihood and wrong ones below, at half slope once there. (B, T)

    slope        of the part that is already beyond the expert; 0 stops there
    right_above  a reward above it is right

    Reads `expert_log_probs (B, T)`: the expert response's own log-probs under the policy that sampled, aligned by
    token index, 0 where it has ended (those positions are left out; ours) or where the prompt has no expert.
    Usual coefficient .1, with advantage `dr_grpo`, no KL, expert rows neither counted nor trained. Source: the
    authors' code (zhh6425/CalibRL).
    """
    expert = at_least_float32(batch["expert_log_probs"])
    sign = torch.where(batch.reward.nan_to_num(0) > right_above, 1.0, -1.0).to(expert.dtype)[:, None]
    gap = -sign * log_ratio_to(evaluation, batch, expert)
    guided = batch.advantage.abs() * torch.nn.functional.leaky_relu(gap, slope)
    return torch.where(batch.mask & (expert != 0), guided, torch.zeros_like(guided))
