"""What a step reports: rewards, signal, lengths, and whether ratio and trust region acted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.objective import signal
from mmrl.objective.groups import group_extreme, representatives
from mmrl.objective.shaping.label_free import answer_shares
from mmrl.record import SOURCES, Batch
from mmrl.stages import Need
from mmrl.training.timing import peak_memory_bytes
from mmrl.training.update import Sums

TAUGHT = Need("log_probs", weights="teacher").key
ROUNDING = 1e-4
"""Largest mean |log ratio| of a float32 policy's first update, whose ratios would be 1 in exact arithmetic."""


@dataclass
class UpdateLog:
    """The optimizer steps of one rollout batch.

    sums     of each: {name: (sum, count)} of this rank
    norms    of each: the gradient's, before clipping, by the metric's name
    moved    of each: how many of this rank's trained weights changed, and how many there are
    skipped  why optimizer steps were left out
    shared   what the last one had of the scheduled learning rate, where the objective makes steps smaller
    """

    sums: list[Sums] = field(default_factory=list)
    norms: list[dict[str, float]] = field(default_factory=list)
    moved: list[tuple[float, float]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    shared: float = 1.0

    def share(self, share: float) -> float:
        self.shared = share
        return share


def update_metrics(every_rank: list[UpdateLog], precision: torch.dtype) -> dict[str, Any]:
    """The logs of all ranks -> means over ranks and optimizer steps, and what has acted."""
    by_update = [_added([log.sums[u] for log in every_rank]) for u in range(len(every_rank[0].sums))]
    first = every_rank[0]
    moved = _added([{"moved": m} for log in every_rank for m in log.moved])
    metrics: dict[str, Any] = _means(_added(by_update))
    metrics |= acted(by_update, precision)
    if len(by_update) > 1 and "ratio/mean" in metrics:
        metrics["ratio/mean_by_update"] = [round(_means(sums)["ratio/mean"], 9) for sums in by_update]
    metrics |= {name: float(np.mean([norms[name] for norms in first.norms])) for name in (first.norms or [{}])[0]}
    metrics.setdefault("gradient_norm", 0.0)
    metrics["update/moved_fraction"] = _means(moved).get("moved", 0.0)
    metrics["updates/of_step"] = len(first.sums)
    metrics["updates/skipped"] = len(first.skipped)
    if first.skipped:
        metrics["skipped"] = first.skipped
    return metrics


def acted(by_update: list[Sums], precision: torch.dtype) -> dict[str, float]:
    """`ratio/acted` and `trust_region/acted`, 1 or 0.

    In exact arithmetic the ratios of a batch's first update are 1 where the policy's own samples are scored under their
    own prompts. What they are off by is rounding, unless it is more than `ROUNDING` (a mean of .03 below float32); a
    later update's count where they are further off than that.
    """
    if not by_update or "ratio/gap" not in by_update[0]:
        return {}
    gaps = [_means(sums)["ratio/gap"] for sums in by_update]
    allowed = ROUNDING if precision == torch.float32 else 0.03
    moved = [gaps[0] > allowed, *(gap > 2 * gaps[0] + 1e-9 for gap in gaps[1:])]
    shaped = [_means(sums)["trust_region/changed_fraction"] > 0 for sums in by_update]
    exact = precision == torch.float32
    shapes = any(s and (m or exact) for s, m in zip(shaped, moved, strict=True))
    return {"ratio/acted": float(any(moved)), "trust_region/acted": float(shapes)}


def not_acted(metrics: Iterable[dict[str, Any]]) -> str:
    """Of a run's steps: one sentence on what has not acted in any of them, "" if everything has."""
    best: dict[str, float] = {}
    updates: set[int] = set()
    for m in metrics:
        for name in ("ratio/acted", "trust_region/acted"):
            if name in m:
                best[name] = max(m[name], best.get(name, 0.0))
        updates.add(m.get("updates/of_step", 0))
    idle = [name.partition("/")[0].replace("_", " ") for name, value in best.items() if not value]
    if not idle:
        return ""
    has = f"{' and '.join(idle)} {'have' if len(idle) > 1 else 'has'} not acted"
    if "ratio" in idle and max(updates, default=0) <= 1:
        return f"{has}: with one optimizer step a rollout batch every ratio is 1"
    return f"{has}: " + ("ratios stayed at 1" if "ratio" in idle else "no ratio left its bounds")


def _added(parts: list[Sums]) -> Sums:
    total: dict[str, list[float]] = {}
    for part in parts:
        for name, (value, count) in part.items():
            entry = total.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += count
    return {name: (value, count) for name, (value, count) in total.items()}


def _means(sums: Sums) -> dict[str, float]:
    return {name: value / count if count else 0.0 for name, (value, count) in sums.items()}


def batch_metrics(batch: Batch, weights: Tensor) -> dict[str, Any]:
    """Rewards, signal, advantages and lengths of the step's rollouts."""
    length = batch.length.double()
    active = weights != 0
    advantage = batch.advantage[active].double() if active.any() else torch.zeros(1)
    return {
        **_reward_metrics(batch),
        **signal(batch),
        **_answer_metrics(batch),
        **_teacher_metrics(batch),
        **_preference_metrics(batch),
        **{f"rollouts/{name}": n for i, name in enumerate(SOURCES) if i and (n := int((batch.source == i).sum()))},
        "advantage/mean": advantage.mean().item(),
        "advantage/abs_mean": advantage.abs().mean().item(),
        "length/mean": length.mean().item(),
        "length/truncated_fraction": batch.truncated.double().mean().item(),
        "entropy/sampled": -(batch.old_log_probs * batch.mask).sum().item() / max(int(batch.mask.sum()), 1),
    }


def _answer_metrics(batch: Batch) -> dict[str, float]:
    """How far groups agree, where a reward numbers their answers: entropy 0 is one answer for all."""
    if "answer" not in batch:
        return {}
    share, entropy, _ = answer_shares(batch["answer"], batch.group, batch.counted)
    groups = representatives(batch.group)
    return {
        "answer/entropy": entropy[groups].mean().item(),
        "answer/majority": group_extreme(share, batch.group)[groups].mean().item(),
    }


def _teacher_metrics(batch: Batch) -> dict[str, float]:
    """How far a teacher is, where a pass asked one: the reverse KL an action, of the policy's own rows."""
    own = batch.mask & (batch.source == 0)[:, None]
    if TAUGHT not in batch.columns or not own.any():
        return {}
    gap = batch.old_log_probs - batch.columns[TAUGHT]
    return {"teacher/kl": gap[own].double().mean().item()}


def _preference_metrics(batch: Batch) -> dict[str, float]:
    """How far an ensemble of rewards trusts the labels of stored pairs, one number a pair."""
    if "preference_strength" not in batch:
        return {}
    strength = batch["preference_strength"][batch["preferred"] > 0].double()
    known = strength[~strength.isnan()]
    if not len(known):
        return {"preference/unknown_fraction": 1.0}
    return {
        "preference/strength": known.median().item(),
        "preference/wrong_fraction": (known <= -1).double().mean().item(),
        "preference/unsure_fraction": (known.abs() < 1).double().mean().item(),
        "preference/unknown_fraction": 1 - len(known) / len(strength),
    }


def speed_metrics(batch: Batch, seconds: dict[str, float]) -> dict[str, float]:
    metrics = {f"seconds/{k}": round(v, 4) for k, v in seconds.items()}
    metrics["memory/peak_bytes"] = peak_memory_bytes()
    if acting := seconds.get("rollout"):
        metrics["rate/actions_per_second"] = round(batch.mask.sum().item() / acting, 2)
        metrics["rate/rollouts_per_second"] = round(len(batch) / acting, 2)
    return metrics


def _reward_metrics(batch: Batch) -> dict[str, float]:
    metrics = {}
    columns = {"reward": batch.reward, **{f"reward/{k}": v for k, v in batch.components.items()}}
    for name, values in columns.items():
        scored = values[~values.isnan()].double()
        if len(scored):
            metrics[f"{name}/mean"] = scored.mean().item()
            metrics[f"{name}/std"] = scored.std().item() if len(scored) > 1 else 0.0
    metrics["reward/unscored_fraction"] = batch.reward.isnan().double().mean().item()
    if batch.success is not None and not batch.success.isnan().all():
        success = batch.success.nan_to_num(0)
        metrics["success"] = success.double().mean().item()
        solved = group_extreme(success, batch.group)[representatives(batch.group)]
        metrics["success/pass@group"] = solved.double().mean().item()
    return metrics
