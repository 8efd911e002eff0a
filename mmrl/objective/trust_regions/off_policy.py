"""Objectives for data that is not quite on-policy: REC's regions, MiniRL, A-LoL."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.numerics import current_log_probs, log_ratio_to, safe_exp, sampler_log_probs
from mmrl.record import Batch, Evaluation
from mmrl.stages import NEEDS, Need, stage

Region = Literal["none", "one_side", "two_side", "ring"]
Weight = Literal["none", "ratio", "advantage"]


def in_region(
    ratio: Tensor, advantage: Tensor, region: Region, low: float, high: float, low_far: float, high_far: float
) -> Tensor:
    """(B, T) bool: actions that train. `one_side` is PPO's mask."""
    good = advantage >= 0
    if region == "none":
        return torch.ones_like(good)
    if region == "one_side":
        return torch.where(good, ratio <= 1 + high, ratio >= 1 - low)
    inside = (ratio >= 1 - low) & (ratio <= 1 + high)
    if region == "two_side":
        return inside
    if region == "ring":
        return inside | (good & (ratio <= 1 - low_far)) | ((advantage <= 0) & (ratio >= 1 + high_far))
    raise ConfigError(f"rec: region is {region!r}; expected none, one_side, two_side or ring")


@stage(
    "trust_region",
    method="rec_opmd_asymre",
    paper="Group-relative REINFORCE is secretly off-policy (REC), arXiv 2509.24203",
    formula="[r in region] w A lp_new, w = 1, sg(r) or exp(A / temperature)",
    confidence="verified",
    grain="action",
)
def rec(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    region: Region = "one_side",
    weight: Weight = "none",
    low: float = 0.2,
    high: float = 0.2,
    low_far: float = 0.6,
    high_far: float = 2.0,
    temperature: float = 1.0,
) -> Tensor:
    """REINFORCE with a group baseline, regularised by which actions may train. Returns (B, T).

    region               "one_side" (PPO's mask), "two_side", "ring" (two_side, and far actions that the advantage
                         pulls back), "none"
    weight               "none" (no importance sampling), "ratio" (one_side with it has GRPO's gradient),
                         "advantage" (RED-weight: exp(A / temperature))
    low, high            of the region; 3e-4 and 4e-4 with ratio `sequence`
    low_far, high_far    where the outer parts of the ring begin

    Add the regularizers `opmd` or `asymre`. Source: yanxi-chen/Trinity-RFT, rec_policy_loss.py.
    """
    ratio, advantage = safe_exp(log_ratio).detach(), batch.advantage
    keep = in_region(ratio, advantage, region, low, high, low_far, high_far)
    if weight == "ratio":
        factor = ratio
    elif weight == "advantage":
        factor = safe_exp(advantage / temperature)
    elif weight == "none":
        factor = torch.ones_like(ratio)
    else:
        raise ConfigError(f"rec: weight is {weight!r}; expected none, ratio or advantage")
    return keep * factor * advantage * current_log_probs(evaluation, batch)


@stage(
    "trust_region",
    method="minirl_stabilising",
    paper="Stabilizing RL with LLMs (MiniRL), arXiv 2512.01374",
    formula="[PPO mask of r] sg(exp(lp_new - lp_sampler)) A lp_new",
    confidence="partly",
    grain="action",
)
def minirl(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.28,
    cap: float | None = 5.0,
) -> Tensor:
    """Weight by the whole ratio to the sampling engine, mask like PPO. Returns (B, T).

    low, high  of the mask, on the ratio to the trainer's old policy
    cap        of the weight (truncated importance sampling); None: off

    Reads `sampler_log_probs` where the engine reports them, else the weight is the ratio itself. Pair it with
    advantage `dr_grpo` and `sequence_sum`. Routing replay of the paper is a matter of the model's forward pass.
    Source: abstract and outline; mask and weight from memory.
    """
    weight = safe_exp(log_ratio_to(evaluation, batch, sampler_log_probs(batch))).detach()
    if cap is not None:
        weight = weight.clamp(max=cap)
    keep = in_region(safe_exp(log_ratio).detach(), batch.advantage, "one_side", low, high, 0, 0)
    return keep * weight * batch.advantage * current_log_probs(evaluation, batch)


def _a_lol_needs(*, variant: str = "sequence", **_) -> dict[str, Need]:
    return {} if variant == "reference_free" else {"ref_log_probs": NEEDS["ref_log_probs"]}


@stage(
    "trust_region",
    paper="Advantage-Leftover Lunch (A-LoL), arXiv 2305.14718",
    formula="A sg(clip(exp(sum_t(lp_new - lp_ref)), 1 - e, 1 + e)) lp_new",
    confidence="verified",
    needs=_a_lol_needs,
    grain="action",
)
def a_lol(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    clip: float = 0.9,
    variant: Literal["sequence", "token", "reference_free"] = "sequence",
) -> Tensor:
    """Offline policy gradient whose whole answer is one action. Returns (B, T).

    clip     e: how far the weight may leave 1
    variant  weight of the sequence; of each token; none. The KL variant is "reference_free" with regularizer `kl`,
             estimator k1

    Pair it with advantage `a_lol` and `sequence_sum`. Source: abaheti95/LoL-RL.
    """
    log_probs = current_log_probs(evaluation, batch)
    if variant == "reference_free":
        return batch.advantage * log_probs
    apart = log_ratio_to(evaluation, batch, batch["ref_log_probs"]).detach()
    if variant == "sequence":
        apart = apart.sum(1, keepdim=True).expand_as(apart)
    elif variant != "token":
        raise ConfigError(f"a_lol: variant is {variant!r}; expected sequence, token or reference_free")
    return safe_exp(apart).clamp(1 - clip, 1 + clip) * batch.advantage * log_probs
