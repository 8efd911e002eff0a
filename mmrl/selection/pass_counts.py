"""Prompts that the starting model sometimes solves, easy ones first: MedVLThinker's filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.errors import ConfigError, DataError, got
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.selection.outcomes import tried
from mmrl.selection.prompts import Shuffled, column
from mmrl.shown import tell
from mmrl.stages import stage


def kept(counts: dict[int, float], low: float, high: float, seed: int) -> list[int]:
    """Rows of low <= count <= high, by count from many to few, equal counts in an order drawn by `seed`."""
    rows = sorted(counts)
    order = torch.randperm(len(rows), generator=Key(seed, purpose="pass counts").generator()).tolist()
    inside = [rows[place] for place in order if low <= counts[rows[place]] <= high]
    return sorted(inside, key=lambda row: -counts[row])


@stage(
    "prompts",
    "medvlthinker",
    paper="MedVLThinker, 2025",
    formula="keep prompts with low <= right answers <= high of n; easy first",
    confidence="partly",
)
class PassCounts:
    """Prompts that are always or never solved are left out, the others come from easy to hard.

    low, high  right answers of `out_of` between which a prompt is kept
    out_of     answers that a count is about
    column     of the data set, the right answers of the starting model; None: the first pass over all prompts, which
               trains on them, counts instead
    seed       of the order among prompts of equal count

    Source: UCSC-VLAA/MedVLThinker, order_easy_to_hard.py; counts of 16 answers, of which that script by itself keeps 1
    to 7: 15 is ours.
    """

    def __init__(
        self, *, low: int = 1, high: int = 15, out_of: int = 16, column: str | None = None, seed: int = 42
    ) -> None:
        if not 0 <= low <= high <= out_of:
            raise ConfigError(f"prompts 'medvlthinker': low {low}, high {high}: expected 0 <= low <= high <= {out_of}")
        self.low, self.high, self.out_of, self.column, self.seed = low, high, out_of, column, seed
        self.counts: dict[int, float] = {}
        self.pool: list[int] | None = None
        self.taken = 0
        self.waiting: set[int] = set()
        self.shuffled = Shuffled()

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Read the counts that the data set brings."""
        if self.column is not None:
            self.counts = {i: self._count(prompts, i) for i in range(len(prompts))}

    def _count(self, prompts: Sequence[Prompt], index: int) -> float:
        value = column(prompts, index, str(self.column), "prompts 'medvlthinker'")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= self.out_of:
            raise DataError(
                f"row {index}: column {self.column!r}: expected right answers, 0 to {self.out_of}, got {got(value)}"
            )
        return float(value)

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`: of all until each was asked, then of those that are kept."""
        if self._counting(size):
            indices = self.shuffled.select(count, size, key)
            self.waiting |= set(indices) - self.counts.keys()
            return indices
        if self.pool is None:
            self.pool = self._kept()
            if missing := size - len(self.counts):
                tell(f"prompts 'medvlthinker': {missing} of {size} prompts were never scored, and are left out")
        indices = self.coming(count, size, key)
        self.taken += count
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        pool = self.pool or ([] if self._counting(size) else self._inside())
        if not pool:  # outcomes of this step, not told yet, may still bring one
            return self.shuffled.coming(count, size, key)
        return [pool[(self.taken + place) % len(pool)] for place in range(count)]

    def _counting(self, size: int) -> bool:
        """Until each prompt was asked and what came of it is known; those that nobody hears of again are waited for
        through one more pass."""
        if self.column is not None or self.pool is not None:
            return False
        waits = bool(self.waiting) and (not self.counts or self.shuffled.taken < 2 * size)
        return waits or self.shuffled.taken < size

    def _inside(self) -> list[int]:
        return kept(self.counts, self.low, self.high, self.seed)

    def _kept(self) -> list[int]:
        pool = self._inside()
        if not pool:
            raise ConfigError(
                f"prompts 'medvlthinker': none of {len(self.counts)} prompts has {self.low} to {self.high} right of "
                f"{self.out_of}; widen the bounds, or take data nearer to what the model can do"
            )
        return pool

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`; its first visit counts, and no later one."""
        self.waiting -= {i for i in indices if i is not None}
        if self.column is None and self.pool is None:
            for each in tried(indices, batch, "medvlthinker"):
                self.counts.setdefault(each.index, each.rate * self.out_of)

    def state_dict(self) -> dict[str, Any]:
        counts = [] if self.column is not None else [[index, count] for index, count in self.counts.items()]
        return {
            "counts": counts,
            "pool": self.pool,
            "taken": self.taken,
            "waiting": sorted(self.waiting),
            "shuffled": self.shuffled.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts |= {int(index): count for index, count in state["counts"]}
        self.pool, self.taken, self.waiting = state["pool"], state["taken"], set(state["waiting"])
        self.shuffled.load_state_dict(state["shuffled"])
