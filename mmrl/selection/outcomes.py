"""What became of prompts, as samplers remember it: how often a dataset row was answered, and how often rightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_count
from mmrl.objective.numerics import outcome
from mmrl.record import Batch


@dataclass(frozen=True)
class Tried:
    """One group of a dataset row.

    index  the row
    group  of the batch
    right  how many answers were right: whole where success is verified, else the sum of rewards in [0, 1]
    count  of answers that were scored
    """

    index: int
    group: int
    right: float
    count: int

    @property
    def rate(self) -> float:
        return self.right / self.count


def tried(indices: list[int | None], batch: Batch, sampler: str) -> list[Tried]:
    """Every group of the batch that answers a dataset row and was scored, in the order of the groups.

    A group counts by its verified success where it has any, else by its reward, which must lie in [0, 1]: `sampler`
    is named where it does not. Groups that a strategy made belong to no row and are left out.
    """
    worth = worth_of(batch)
    scored = batch.counted & ~torch.isnan(worth)
    seen = worth[scored]
    if len(seen) and not (seen.min() >= 0 and seen.max() <= 1):
        raise ConfigError(
            f"prompts {sampler!r} tracks a success rate: rewards must lie in [0, 1], got "
            f"[{seen.min():g}, {seen.max():g}]"
        )
    found = []
    for group in torch.unique(batch.group[scored]).tolist():
        index, mine = indices[group], scored & (batch.group == group)
        if index is not None:
            found.append(Tried(index, group, float(worth[mine].sum()), int(mine.sum())))
    return found


def worth_of(batch: Batch) -> Tensor:
    """(B,) float64: success in groups that have any, else reward."""
    if batch.success is None or batch.reward is None:
        return outcome(batch).double()
    verified = group_count(batch.group, batch.counted & ~torch.isnan(batch.success)) > 0
    return torch.where(verified, batch.success.double(), batch.reward.double())


def check_pilot(name: str, pilot: int, count: int, size: int, *, first: bool) -> None:
    """ConfigError for a pilot in which `count` prompts a step cannot visit each of `size` rows twice. `first`: of the
    run's first draw, which takes a whole step's prompts; later ones of a strategy may be smaller."""
    if first and 0 < pilot * count < 2 * size:
        raise ConfigError(
            f"prompts {name!r}: a pilot of {pilot} steps of {count} prompts visits {size} rows less than twice; choose "
            f"pilot={-(-2 * size // count)}, or fewer rows by data.limit"
        )
