"""Bounds that keep a gradient: detached weights (CISPO, VESPO), soft gates (SAPO), clipped tokens that still push
(GPPO), tokens rescued from the clip (NSR)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.numerics import LOG_BOUND, current_log_probs, either, row_uniform, safe_exp
from mmrl.objective.trust_regions.clip import check_dual, ppo
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, stage


@stage(
    "trust_region",
    paper="CISPO: MiniMax-M1, arXiv 2506.13585; ScaleRL, arXiv 2510.13786",
    formula="sg(clip(r, low, high)) A lp_new",
    confidence="verified",
    grain="action",
)
def cispo(log_ratio: Tensor, evaluation: Evaluation, batch: Batch, *, low: float = 0.0, high: float = 5.0) -> Tensor:
    """Clip and detach the importance weight, never the gradient. Returns (B, T).

    low, high  absolute ratios, the same for both signs. TRL and ScaleRL cap at 5 and have no lower bound; verl
               uses 0.8 and 1.2. Above the largest ratio the gradient is that of the unclipped objective

    The loss value contains log-probs: do not compare it with GRPO's. Pair it with `token_mean`.
    """
    weight = safe_exp(log_ratio).clamp(low, high).detach()
    return weight * batch.advantage * current_log_probs(evaluation, batch)


@stage(
    "trust_region",
    paper="SAPO: Soft Adaptive Policy Optimization, arXiv 2511.20347",
    formula="(4 / tau) sigmoid(tau (r - 1)) A, tau by the sign of A",
    confidence="verified",
)
def sapo(
    log_ratio: Tensor, evaluation: Evaluation, batch: Batch, *, positive: float = 1.0, negative: float = 1.05
) -> Tensor:
    """A sigmoid of the ratio in place of clipping. Returns (B, T).

    positive, negative  temperature tau by the sign of the advantage: larger closes the gate sooner; negatives get
                        the sharper one, since they spread over the whole vocabulary

    The slope at ratio 1 is 1 for any tau, the value there 2 A / tau. Pair it with `sequence_mean`. Source: verl,
    TRL, ms-swift.
    """
    ratio = safe_exp(log_ratio)
    tau = either(batch.advantage > 0, positive, negative, ratio)
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * batch.advantage


@stage(
    "trust_region",
    paper="VESPO, 2026",
    formula="sg(exp(l + k log W - l W)) A lp_new, (k, l) by the sign of A, W the full sequence ratio",
    confidence="verified",
    grain="action",
)
def vespo(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    positive_power: float = 2.0,
    positive_decay: float = 3.0,
    negative_power: float = 3.0,
    negative_decay: float = 2.0,
) -> Tensor:
    """A gamma-shaped, detached weight of the ratio: 1 on policy, fading on both sides. Returns (B, T).

    positive_power, positive_decay  k and l where the advantage is not negative; the weight peaks at ratio k / l
    negative_power, negative_decay  where it is

    Pair it with ratio `full_sequence` and `token_mean`. Source: TRL `get_gamma_weights`.
    """
    log_weight = log_ratio.detach().clamp(math.log(1e-8), LOG_BOUND)
    good = batch.advantage >= 0
    power = either(good, positive_power, negative_power, log_weight)
    decay = either(good, positive_decay, negative_decay, log_weight)
    gate = torch.exp(decay + power * log_weight - decay * log_weight.exp())
    return gate * batch.advantage * current_log_probs(evaluation, batch)


@stage(
    "trust_region",
    method="klear_gppo",
    paper="GPPO: Klear-Reasoner, arXiv 2508.07629",
    formula="min(r A, clip(r, (1 - low) r/sg(r), (1 + high) r/sg(r)) A)",
    confidence="verified",
)
def gppo(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.28,
    dual: float | None = 3.0,
    low_push: float = 1.0,
    high_push: float = 1.0,
) -> Tensor:
    """Clip-higher's value, but clipped actions push with the bounded weight. Returns (B, T).

    low, high            as in `clip`
    dual                 ratio of a negative advantage past which there is no gradient at all; None: off
    low_push, high_push  scale of the gradient of actions clipped at each bound (beta of the paper; its code has 1)

    The value equals DAPO's. Source: suu990901/KlearReasoner, `compute_gppo_loss`.
    """
    check_dual(dual, high)
    ratio, advantage = safe_exp(log_ratio), batch.advantage
    value = ppo(ratio, advantage, 1 - low, 1 + high, dual)
    push = either(advantage >= 0, high_push, low_push, ratio)
    clipped = torch.where(advantage >= 0, ratio > 1 + high, ratio < 1 - low)
    unit = ratio / ratio.detach()
    return torch.where(clipped, value.detach() + value.detach() * push * (unit - 1), value)


@stage(
    "trust_region",
    "nsr_rescue",
    method="nsr",
    paper="Clipping Bottleneck: stochastic recovery of near-boundary signals, arXiv 2605.22703",
    formula="a clipped action counts as xi r A, xi ~ U(1 - noise, 1 + noise), if r xi falls back inside the bounds",
    confidence="partly",
)
def nsr_rescue(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.28,
    noise: float | None = None,
) -> Tensor:
    """Actions just outside the clip bound get a random second chance; those inside are never touched. Returns (B, T).

    low, high  as in `clip`
    noise      half-width of the noise; 0 is DAPO. None: `high`

    Draws are keyed by (seed, step, group, member), so every micro-batch of a step sees the same ones. The expected
    gradient fades like 1/r^2. Source: a digest of the paper; noise range and the factor xi are ours.
    """
    noise = high if noise is None else noise
    if not 0 <= noise < 1:
        raise ConfigError(f"nsr_rescue: noise is {noise}; expected 0 <= noise < 1")
    ratio, advantage = safe_exp(log_ratio), batch.advantage
    xi = (1 - noise + 2 * noise * row_uniform(batch, "nsr_rescue")).to(ratio)
    shaken = ratio.detach() * xi
    clipped = torch.where(advantage >= 0, ratio > 1 + high, ratio < 1 - low)
    back = torch.where(advantage >= 0, shaken <= 1 + high, shaken >= 1 - low)
    plain = ppo(ratio, advantage, 1 - low, 1 + high)
    return torch.where(clipped & back, xi * ratio * advantage, plain)


@stage(
    "trust_region",
    paper="Flow-DPPO, arXiv 2606.11025",
    formula="rho A; no gradient where D > delta and (A > 0 and rho > 1, or A < 0 and rho < 1), D the exact step KL",
    confidence="verified",
    needs=("mean_shift",),
    modalities=FLOW,
)
def flow_dppo(log_ratio: Tensor, evaluation: Evaluation, batch: Batch, *, delta: float = 1e-5) -> Tensor:
    """A step that has moved further than `delta` may come back but not move on. Returns (B, T).

    delta  KL to the rollout's step, mean((mu_new - mu_old)^2) / (2 std^2); larger allows longer steps

    Wants `policy.keep_means: true`. Source: verl-omni's documentation; the paper's own code was not read.
    """
    ratio = safe_exp(log_ratio)
    outwards = torch.where(batch.advantage > 0, ratio > 1, ratio < 1) & (batch.advantage != 0)
    blocked = outwards & (evaluation["mean_shift"].detach() > delta)
    objective = ratio * batch.advantage
    return torch.where(blocked, objective.detach(), objective)
