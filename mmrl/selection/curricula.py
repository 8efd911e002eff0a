"""Prompts by difficulty: DRIVE's two stages."""

from __future__ import annotations

import math
from typing import Any

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.outcomes import tried
from mmrl.selection.prompts import Shuffled
from mmrl.stages import stage


@stage(
    "prompts",
    "drive",
    paper="DRIVE: data curation for RLVR, 2025",
    formula="all prompts first; then after each phase the hardest share of those left, without solved ones",
    confidence="reconstructed",
)
class Drive:
    """All prompts alike at first, then an ever smaller set of the hardest, to which no prompt comes back.

    hard_from  step at which the hard stage begins
    every      steps of a phase, after which the set shrinks again
    keep       share of the set that a phase keeps; prompts that are always solved leave it in any case
    momentum   of the running success rate of a prompt
    parked     visits in a row without any success after which a prompt leaves too

    Outcomes are success rates or rewards in [0, 1]; a prompt not asked yet counts as solved half the time. If nothing
    is left the set stays as it was. The hard stage samples more answers of each: rollout `drive_budget`. Source:
    abstract; share, phases and parking are ours.
    """

    def __init__(
        self, *, hard_from: int = 100, every: int = 50, keep: float = 0.5, momentum: float = 0.9, parked: int = 3
    ) -> None:
        self.hard_from, self.every, self.keep, self.momentum, self.parked = hard_from, every, keep, momentum, parked
        self.rate: dict[int, float] = {}
        self.hopeless: dict[int, int] = {}
        self.pool: list[int] | None = None
        self.phase = 0
        self.shuffled = Shuffled()

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`; the set shrinks when a phase of the hard stage begins."""
        phase = 0 if key.step < self.hard_from else 1 + (key.step - self.hard_from) // self.every
        while self.phase < phase:
            self.pool, self.phase = self.hardest(self.pool or list(range(size))), self.phase + 1
        places = self.shuffled.select(count, len(self.pool or range(size)), key)
        return places if self.pool is None else [self.pool[p] for p in places]

    def hardest(self, pool: list[int]) -> list[int]:
        """The hardest share of `pool` that is neither solved nor given up; all of it where nothing is."""
        rates = {i: self.rate.get(i, 0.5) for i in pool}
        alive = [i for i in pool if rates[i] < 1 and self.hopeless.get(i, 0) < self.parked]
        ordered = sorted(alive, key=lambda i: rates[i])
        return ordered[: math.ceil(self.keep * len(pool) - 1e-9)] or pool

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        for each in tried(indices, batch, "drive"):
            before, hopeless = self.rate.get(each.index), self.hopeless.get(each.index, 0)
            self.rate[each.index] = (
                each.rate if before is None else self.momentum * before + (1 - self.momentum) * each.rate
            )
            self.hopeless[each.index] = 0 if each.right else hopeless + 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "rate": [[i, r] for i, r in self.rate.items()],
            "hopeless": [[i, n] for i, n in self.hopeless.items() if n],
            "pool": self.pool,
            "phase": self.phase,
            "shuffled": self.shuffled.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate = {int(i): r for i, r in state["rate"]}
        self.hopeless = {int(i): n for i, n in state["hopeless"]}
        self.pool, self.phase = state["pool"], state["phase"]
        self.shuffled.load_state_dict(state["shuffled"])
