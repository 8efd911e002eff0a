"""Optimizer steps that combine the gradients of several rewards: each has a forward and a backward pass of its own.

An advantage that is a mixture (`mmrl.objective.advantages.marble`) splits into one advantage a reward. Several backward
passes over one forward would be silently wrong under DDP, so each reward trains as a step of its own would, without the
optimizer moving; gradients are then those of all ranks, and combined alike on each. Penalties are added afterwards,
outside the combination.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl.objective import Objective
from mmrl.objective.objective import _per_action
from mmrl.record import Batch, Rollouts
from mmrl.training.update import Added, Gradients


class Mixture(Protocol):
    """An advantage that is a sum of several."""

    weights: dict[str, float]

    def due(self, update: int) -> bool: ...

    def split(self, batch: Batch) -> dict[str, Tensor]: ...

    def combine(self, gram: Tensor) -> tuple[Tensor, float]: ...


def mixture_of(objective: Objective) -> Mixture | None:
    """The advantage where it is a mixture; None for all others."""
    state = objective.advantage.state
    return state if hasattr(state, "split") and hasattr(state, "combine") else None


def combined(
    gradients: Gradients, mixture: Mixture, rollouts: Rollouts, batch: Batch, weights: Tensor, mine: Tensor,
    update: int,
) -> Added:  # fmt: skip
    """The gradient of optimizer step `update`, combined over rewards, in the weights' `.grad`."""
    parameters = [p for p in gradients.policy.module.parameters() if p.requires_grad]
    bare = replace(gradients, objective=replace(gradients.objective, regularizers=[]))
    found: list[list[Tensor]] = []
    told = Added(0)
    for advantage in mixture.split(batch).values():
        one = replace(batch, advantage=_per_action(advantage.to(batch.advantage), batch))
        added = bare.add(rollouts, one, weights, mine, update)
        told = _with(told, added)
        found.append(_taken(parameters))
    factors, conflict = mixture.combine(_gram(found))
    if gradients.objective.regularizers:
        penalties, marked = _penalties(gradients, batch, weights)
        told = _with(told, penalties.add(rollouts, marked, torch.zeros_like(weights), mine, update))
    for place, parameter in enumerate(parameters):
        total = sum(float(f) * each[place] for f, each in zip(factors, found, strict=True) if float(f))
        if isinstance(total, Tensor):
            parameter.grad = total if parameter.grad is None else parameter.grad + total
    told.sums |= {f"marble/weight/{name}": (value, 1.0) for name, value in mixture.weights.items()}
    told.sums["marble/least_cosine"] = (conflict, 1.0)
    return told


def _penalties(gradients: Gradients, batch: Batch, weights: Tensor) -> tuple[Gradients, Batch]:
    """What adds the penalties alone: each reads its weights from a column, so those of the policy's term can be 0."""
    objective = gradients.objective
    own = [replace(r, aggregation=r.aggregation or objective.aggregation) for r in objective.regularizers]
    columns = {r.place: weights for r in objective.regularizers if r.aggregation is None}
    return replace(gradients, objective=replace(objective, regularizers=own)), replace(
        batch, columns={**batch.columns, **columns}
    )


def _taken(parameters: list[Any]) -> list[Tensor]:
    """The gradients, moved out of the weights; zeros where there is none."""
    kept = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return kept


def _gram(found: list[list[Tensor]]) -> Tensor:
    """(K, K) float64 dot products of whole gradients, shards of all ranks included."""
    gram = torch.zeros(len(found), len(found), dtype=torch.float64)
    for i, a in enumerate(found):
        for j, b in enumerate(found[: i + 1]):
            dots = [(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]
            gram[i, j] = gram[j, i] = sum(float(d.full_tensor() if hasattr(d, "full_tensor") else d) for d in dots)
    return gram


def _with(told: Added, added: Added) -> Added:
    return Added(max(told.passes, added.passes), told.sums | added.sums, told.problem or added.problem)
