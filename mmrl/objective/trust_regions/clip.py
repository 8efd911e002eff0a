"""PPO-style clipping: one region for all, one that widens with position, clipping inside a mean, two at once.

`PPO(rho, A; lo, hi) = min(rho A, clip(rho, lo, hi) A)`. The advantage is a constant, so this is
`A min(rho, hi)` for `A >= 0` and `A max(rho, lo)` for `A < 0`: one bound per sign, and past it no gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import masked_mean
from mmrl.objective.numerics import current_log_probs, position, safe_exp, straight_through
from mmrl.objective.ratios import gspo_token, log_power_mean
from mmrl.record import Batch, Evaluation
from mmrl.stages import NEEDS, Need, stage


def ppo(
    ratio: Tensor, advantage: Tensor, low: Tensor | float, high: Tensor | float, dual: Tensor | float | None = None
) -> Tensor:
    """(B, T) `PPO(ratio, advantage; low, high)`; `dual` caps the ratio of negative advantages.

    low, high, dual  absolute ratios: numbers, or tensors that broadcast to (B, T)
    """
    low, high = (torch.as_tensor(b, dtype=ratio.dtype, device=ratio.device) for b in (low, high))
    objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    if dual is None:
        return objective
    return torch.where(advantage < 0, torch.maximum(objective, dual * advantage), objective)


def check_dual(dual: float | None, high: float) -> None:
    if dual is not None and dual <= 1 + high:
        raise ConfigError(f"dual clip {dual} must exceed 1 + high = {1 + high:g}; common values are 3, 4 and 10")


@stage(
    "trust_region",
    method="grpo",
    paper="PPO, arXiv 1707.06347; clip-higher: DAPO, arXiv 2503.14476; dual clip: arXiv 1912.09729",
    formula="min(rho A, clip(rho, 1 - low, 1 + high) A); for A < 0 with dual c: max(that, c A)",
    confidence="verified",
)
def clip(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> Tensor:
    """Pessimistic clipping of the ratio. Returns (B, T).

    low, high  how far the ratio may fall and rise; DAPO raises `high` to 0.28 so that rare actions can grow;
               0.0003 / 0.0004 for sequence ratios; around 1e-3 or less for denoising steps
    dual       upper bound of the ratio for negative advantages: off in TRL (`delta`), 3 in verl, 10 in DAPO's
               scripts, 4 in INTELLECT-2; must exceed 1 + high
    """
    check_dual(dual, high)
    return ppo(safe_exp(log_ratio), batch.advantage, 1 - low, 1 + high, dual)


@stage(
    "trust_region",
    method="importance",
    paper="importance-sampled policy gradient",
    formula="rho A",
    confidence="verified",
)
def none(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """No bound: the plain importance-weighted objective. Returns (B, T). For one update per rollout batch."""
    return safe_exp(log_ratio) * batch.advantage


@stage(
    "trust_region",
    method="rloo",
    paper="REINFORCE, Williams 1992",
    formula="A lp_new",
    confidence="verified",
    grain="action",
)
def reinforce(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """Advantage times log-prob, without any ratio. Returns (B, T). The loss value contains log-probs."""
    return batch.advantage * current_log_probs(evaluation, batch)


@stage(
    "trust_region",
    method="gtpo",
    paper="GTPO, arXiv 2508.03772; JustGRPO, arXiv 2601.15165",
    formula="A exp(lp_new - sg(lp_new))",
    confidence="verified",
    grain="action",
)
def unit_ratio(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """A ratio of 1 whichever policy sampled: `reinforce`, but its value is the advantage. Returns (B, T)."""
    return straight_through(torch.zeros_like(log_ratio), current_log_probs(evaluation, batch)).exp() * batch.advantage


@stage(
    "trust_region",
    paper="CTPO, arXiv 2605.07331",
    formula="PPO with log bounds -low n_t^p and high n_t^p, dual clip at exp(dual n_t^p), n_t = actions so far",
    confidence="verified",
)
def ctpo(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.025,
    high: float = 0.05,
    dual: float | None = 0.05,
    power: float = 0.5,
) -> Tensor:
    """Clipping in log space whose bounds widen with the position, for the ratio `ctpo`. Returns (B, T).

    low, high, dual  log units at the first action; None: no dual clip. With dual equal to high negatives are
                     bounded on both sides, as the authors run it
    power            how fast the bounds widen: 0.5 like a random walk, 0 not at all, -0.5 with the prefix mean

    Source: horizon-llm/CTPO, `_compute_policy_loss_cum_token_la_impl`.
    """
    scale = position(batch.mask).clamp(min=1).to(log_ratio.dtype) ** power
    cap = None if dual is None else (dual * scale).exp()
    return ppo(safe_exp(log_ratio), batch.advantage, (-low * scale).exp(), (high * scale).exp(), cap)


def pessimistic(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """(B, T) log-ratio clipped by the advantage's sign: `min(R, high)` for A >= 0, `max(R, -low)` for A < 0."""
    return torch.where(advantage >= 0, log_ratio.clamp(max=high), log_ratio.clamp(min=-low))


@stage(
    "trust_region",
    paper="GMPO: Geometric-Mean Policy Optimization, arXiv 2507.20673",
    formula="A exp(mean_t Rc_it), Rc = sgn(A) min(sgn(A) R, sgn(A) clip(R, -low, high))",
    confidence="verified",
    grain="row",
)
def gmpo(log_ratio: Tensor, evaluation: Evaluation, batch: Batch, *, low: float = 0.4, high: float = 0.4) -> Tensor:
    """Clip each log-ratio, then take the geometric mean of the sequence. Returns (B, T), constant along a row.

    low, high  in log units

    Pair it with ratio `token` and `sequence_mean`. Source: verl `geo_mean`.
    """
    clipped = pessimistic(log_ratio, batch.advantage, low, high)
    return safe_exp(masked_mean(clipped, batch.mask))[:, None] * batch.advantage


@stage(
    "trust_region",
    method="holderpo",
    paper="HolderPO (holder_token ablation), arXiv 2605.12058",
    formula="A M_p of the token ratios, each clipped by the advantage's sign first",
    confidence="verified",
    grain="row",
)
def holder_token(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    power: float = 1.0,
    low: float = 0.2,
    high: float = 0.2,
) -> Tensor:
    """Clip each token ratio, then take the power mean of the sequence. Returns (B, T), constant along a row.

    power      of the mean, see ratio `holder`
    low, high  how far each ratio may fall and rise

    Pair it with ratio `token` and `sequence_mean`. Source: YihangChen9/HolderPO.
    """
    edge = log_ratio.new_tensor([1 - low, 1 + high]).log()
    clipped = pessimistic(log_ratio, batch.advantage, -float(edge[0]), float(edge[1]))
    return safe_exp(log_power_mean(clipped, batch.mask, power))[:, None] * batch.advantage


def _dhpo_needs(*, mix: float | Literal["entropy"] = 0.5, **_) -> dict[str, Need]:
    return {"entropy": NEEDS["entropy"]} if mix == "entropy" else {}


@stage(
    "trust_region",
    paper="DHPO: Dynamic Hybrid Policy Optimization, arXiv 2601.05607",
    formula="w PPO(r_it, A; token bounds) + (1 - w) PPO(s_it, A; sequence bounds)",
    confidence="partly",
    needs=_dhpo_needs,
)
def dhpo(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    mix: float | Literal["entropy"] = 0.5,
    low: float = 0.2,
    high: float = 0.2,
    sequence_low: float = 3e-4,
    sequence_high: float = 4e-4,
    min_at: Literal["branch", "mix"] = "branch",
) -> Tensor:
    """Token and sequence surrogates, each clipped in its own region, then mixed. Returns (B, T).

    mix                          weight of the token branch: 1 is GRPO, 0 is GSPO-token, "entropy" the action's
                                 entropy over the row's largest (uncertain actions use their own ratio)
    low, high                    of the token branch, as in `clip`
    sequence_low, sequence_high  of the sequence branch, as with GSPO
    min_at                       "branch": pessimism inside each branch; "mix": once, on the mixed ratios

    Pair it with ratio `token` and `sequence_mean`. Source: abstract and two digests of the full text; the entropy
    map and the bounds are ours.
    """
    weight = _entropy_share(batch).to(log_ratio) if mix == "entropy" else mix
    own, whole, advantage = safe_exp(log_ratio), safe_exp(gspo_token(evaluation, batch)), batch.advantage
    if min_at == "mix":
        clipped = weight * own.clamp(1 - low, 1 + high) + (1 - weight) * whole.clamp(
            1 - sequence_low, 1 + sequence_high
        )
        return torch.minimum((weight * own + (1 - weight) * whole) * advantage, clipped * advantage)
    tokens = ppo(own, advantage, 1 - low, 1 + high)
    return weight * tokens + (1 - weight) * ppo(whole, advantage, 1 - sequence_low, 1 + sequence_high)


def _entropy_share(batch: Batch) -> Tensor:
    entropy = batch["entropy"] * batch.mask
    return (entropy / entropy.amax(1, keepdim=True).clamp(min=1e-12)).clamp(0, 1)
