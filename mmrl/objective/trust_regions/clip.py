"""PPO-style clipping and its relatives.

`PPO(rho, A; lo, hi) = min(rho A, clip(rho, lo, hi) A)`. The advantage is a constant, so this is
`A min(rho, hi)` for `A >= 0` and `A max(rho, lo)` for `A < 0`: one bound per sign, and past it no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.numerics import safe_exp
from mmrl.record import Batch, Evaluation
from mmrl.stages import stage

Bound = Tensor | float


def ppo(ratio: Tensor, advantage: Tensor, low: Bound, high: Bound, dual: Bound | None = None) -> Tensor:
    """(B, T) `PPO(ratio, advantage; low, high)`; `dual` caps the ratio of negative advantages.

    low, high, dual  absolute ratios: numbers, or tensors that broadcast to (B, T)
    """
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
)
def clip(
    log_ratio: Tensor, evaluation: Evaluation, batch: Batch, *, low: float = 0.2, high: float = 0.2,
    dual: float | None = None,
) -> Tensor:  # fmt: skip
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
)
def none(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """No bound: the plain importance-weighted objective. Returns (B, T). For one update per rollout batch."""
    return safe_exp(log_ratio) * batch.advantage


@stage(
    "trust_region",
    method="reinforce",
    paper="REINFORCE, Williams 1992",
    formula="A lp_new",
)
def reinforce(log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> Tensor:
    """Advantage times log-prob, without any ratio. Returns (B, T). The loss value contains log-probs."""
    return batch.advantage * evaluation.log_probs
