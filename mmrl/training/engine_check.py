"""Whether what writes responses and what trains on them still agree, over a run and not only before it.

An engine with weights of its own may fall behind them, or stop following at all: its rows look as before, and their
ratios are wrong. Both are seen in its log-probs, next to the trainer's of the same actions.
"""

from __future__ import annotations

import torch

from mmrl.policies.base import Policy
from mmrl.record import Batch, Rollouts
from mmrl.stages import Bound
from mmrl.training.self_check import SelfCheck, Tolerance, compare

SAMPLER = "sampler_log_probs"
EVERY = 10
"""Steps between checks of an engine with weights of its own, where the configuration says nothing."""


def is_due(step: int, every: int | None, policy: Policy) -> bool:
    """Whether step `step`, from 0, is checked. every: `training.check_every`"""
    every = (EVERY if policy.acts_apart else 0) if every is None else every
    return step == 0 or bool(every and step % every == 0)


def compared(rollouts: Rollouts, allowed_mean: float) -> SelfCheck | None:
    """The engine's log-probs beside the trainer's in `old_log_probs`; None where the rows hold one of the two.

    An engine that is not exact is held to a mean: single actions may differ by much.
    """
    if SAMPLER not in rollouts.columns:
        return None
    return compare(
        rollouts.old_log_probs, rollouts.columns[SAMPLER], rollouts.mask, Tolerance(float("inf"), allowed_mean),
        shown=rollouts.source > 0,
    )  # fmt: skip


def problem(check: SelfCheck, rollouts: Rollouts, policy: Policy) -> str | None:
    """One line on an engine that is not, or no longer, what it is held to; None where it is, or where there is none.

    check  the log-probs that rows are trained on beside those of the update
    """
    engine = compared(rollouts, policy.engine_gap) or (check if policy.acts_apart else None)
    if engine is None or engine.passed:
        return None
    apart = (
        f"step {check.step + 1}: engine and trainer disagree: mean gap {engine.mean:.2e}, worst {engine.worst:.2e} "
        f"over {engine.actions} actions of {engine.rows} rollouts (tolerance {engine.tolerance})"
    )
    if not check.step:
        return f"{apart}. {engine.cause}"
    return (
        f"{apart}. The engine no longer follows the weights: its sync must take every tensor that it is given, and "
        "drop what it cached with older ones"
    )


def clip_range(region: Bound) -> float | None:
    """How far a log-ratio may go before a trust region acts, on its nearer side; None of one without such bounds."""
    given = {**region.spec.defaults, **region.parameters}
    bounds = [given.get(name) for name in ("low", "high")]
    return min((float(bound) for bound in bounds if isinstance(bound, int | float) and bound > 0), default=None)


def gaps(batch: Batch, check: SelfCheck | None, clip: float | None = None) -> dict[str, float]:
    """Metrics of a step: of the whole batch where it holds both log-probs, else of the check that was made in it.

    clip  see `clip_range`; the mean gap is then shown as a share of it
    """
    found = _gaps(batch, check)
    return found | ({"engine/gap_of_clip": found["engine/gap_mean"] / clip} if found and clip else {})


def _gaps(batch: Batch, check: SelfCheck | None) -> dict[str, float]:
    if SAMPLER in batch:
        mask = batch.mask if batch.source is None else batch.mask & (batch.source == 0)[:, None]
        apart = (batch[SAMPLER] - batch.old_log_probs)[mask].abs()
        mean, worst = (apart.mean(), apart.max()) if len(apart) else torch.zeros(2)
        return {"engine/gap_mean": mean.item(), "engine/gap_max": worst.item()}
    return {} if check is None else {"engine/gap_mean": check.mean, "engine/gap_max": check.worst}
