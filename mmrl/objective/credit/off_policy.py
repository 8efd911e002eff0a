"""Credit for data that another engine or an older policy made: importance correction, sequence masks, OWPO.

Trust regions are linear in the size of the advantage, so weighing it is weighing the objective; the KL is not
touched. A silenced row keeps its place in the denominators.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import masked_mean
from mmrl.objective.numerics import Level, engine_ratio, log_ratio_to, safe_exp, sampler_log_probs
from mmrl.record import Batch, Evaluation
from mmrl.stages import stage


@stage(
    "credit",
    paper="TIS / MIS: train-inference mismatch; TRL, verl rollout_corr_helper",
    formula="A <- c A, c = exp(lp_old - lp_sampler), truncated at `high` or dropped outside [low, high]",
    confidence="verified",
    needs=("sampler_log_probs",),
    grain="row",
)
def importance_correction(
    advantage: Tensor,
    batch: Batch,
    *,
    level: Level = "sequence",
    mode: Literal["mask", "truncate"] = "mask",
    low: float = 0.0,
    high: float = 3.0,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Corrects for a sampling engine whose probabilities differ from the trainer's. Returns (B, T) twice.

    level      "token", "sequence" (product), "geometric" (its length-normalised form)
    mode       "mask" drops what lies outside [low, high]; "truncate" clamps it there
    low, high  TRL: sequence mask at 3; verl: truncation at 2
    normalize  divide the weights by their mean over the batch's actions

    Reads `sampler_log_probs (B, T)`, which sampling engines report.
    """
    ratio = engine_ratio(batch, level)
    if mode == "truncate":
        weight = ratio.clamp(low, high)
    elif mode == "mask":
        weight = ratio * ((ratio >= low) & (ratio <= high))
    else:
        raise ConfigError(f"importance_correction: mode is {mode!r}; expected 'mask' or 'truncate'")
    if normalize:
        inside = (batch.mask & batch.trained[:, None]).to(weight)
        weight = weight / ((weight * inside).sum() / inside.sum().clamp(min=1)).clamp(min=1e-12)
    return advantage * weight * batch.mask, batch.loss_mask


@stage(
    "credit",
    method="dr_kernel_trloo",
    paper="geometric rejection: verl; Dr. Kernel, arXiv 2602.05885",
    formula="A <- 0 where exp(mean_t(lp_old - lp_sampler)) leaves [low, high], or one action's ratio is below `veto`",
    confidence="verified",
    needs=("sampler_log_probs",),
    grain="row",
)
def geometric_rejection(
    advantage: Tensor, batch: Batch, *, low: float = 0.999, high: float = 1.001, veto: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Silences sequences on which trainer and engine disagree. Returns (B, T) twice.

    low, high  of the geometric mean ratio
    veto       a single action less likely than this share of the engine's probability silences its sequence; 0: off
    """
    mean = engine_ratio(batch, "geometric")
    worst = torch.where(batch.mask, engine_ratio(batch, "token"), 1.0).amin(1, keepdim=True)
    keep = (mean >= low) & (mean <= high) & (worst >= veto)
    return advantage * keep, batch.loss_mask


@stage(
    "credit",
    paper="OPSM: DeepSeek-V3.2, arXiv 2512.02556",
    formula="A_i <- 0 where A_i < 0 and mean_t(lp_sampler_or_old - lp_new) > delta",
    confidence="verified",
    phase="update",
    grain="row",
)
def off_policy_mask(
    advantage: Tensor, evaluation: Evaluation, batch: Batch, *, delta: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Silences negative sequences the policy has already moved away from. Returns (B, T) twice.

    delta  mean log-prob lost since sampling that is still trained; smaller drops more

    Positives are never dropped; on policy nothing is. Source: TRL `get_off_policy_mask`.
    """
    lost = -masked_mean(log_ratio_to(evaluation, batch, sampler_log_probs(batch)), batch.mask)
    keep = (advantage >= 0) | (lost <= delta)[:, None]
    return advantage * keep, batch.loss_mask


@stage(
    "credit",
    paper="OWPO: One-Way Policy Optimization, arXiv 2605.22156",
    formula="A <- w A, u = sgn(A)(lp_new - lp_ref), w = 1 + a(1 - exp(u)) if u < 0 else max(exp(-g u), floor)",
    confidence="reconstructed",
    needs=("ref_log_probs",),
    phase="update",
)
def owpo(
    advantage: Tensor, evaluation: Evaluation, batch: Batch, *, gain: float = 1.0, lock: float = 1.0, floor: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The verifier gives the direction; the reference scales it: more when behind, less when ahead. (B, T) twice.

    gain   a: how much faster the policy catches up, at most 1 + gain
    lock   g: how fast gains beyond the reference fade
    floor  smallest weight; above 0 the direction never flips

    Replace the reference by the policy every 100 steps or so (the ratchet). Source: abstract and digests (token-wise
    weight on the PPO objective, stop-gradient, faster when inferior, slower when superior); the weight function is
    ours: no formula was found.
    """
    ahead = torch.sign(advantage) * log_ratio_to(evaluation, batch, batch["ref_log_probs"])
    behind_weight = 1 + gain * (1 - safe_exp(ahead))
    weight = torch.where(ahead < 0, behind_weight, safe_exp(-lock * ahead).clamp(min=floor))
    return advantage * weight, batch.loss_mask
