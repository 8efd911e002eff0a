"""Prompts by difficulty: DRIVE's two stages."""

from __future__ import annotations

import math
from typing import Any

import torch

from mmrl.objective.groups import group_mean
from mmrl.objective.numerics import outcome
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.prompts import Shuffled
from mmrl.stages import stage


@stage(
    "prompts",
    "drive",
    paper="DRIVE: data curation for RLVR, 2025",
    formula="all prompts first; then after each phase the hardest share of those left, unsolved ones last",
    confidence="partly",
)
class Drive:
    """All prompts alike at first, then an ever smaller set of the hardest that were solved at least once.

    hard_from  step at which the hard stage begins
    every      steps of a phase, after which the set shrinks again
    keep       share of the set that a phase keeps
    momentum   of the running success rate of a prompt

    Outcomes are success rates or rewards in [0, 1]. Prompts that never succeeded come after those that rarely do, and
    a prompt not asked yet counts as solved half the time. The paper's hard stage samples 64 rollouts a prompt where
    the first has 8: resume with another `training.group_size`. Source: abstract.
    """

    def __init__(self, *, hard_from: int = 100, every: int = 50, keep: float = 0.5, momentum: float = 0.9) -> None:
        self.hard_from, self.every, self.keep, self.momentum = hard_from, every, keep, momentum
        self.rate: dict[int, float] = {}
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
        rates = {i: self.rate.get(i, 0.5) for i in pool}
        ordered = sorted(pool, key=lambda i: (rates[i] == 0, rates[i]))
        return ordered[: max(1, math.ceil(self.keep * len(pool) - 1e-9))]

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        worth = outcome(batch).double()
        mean = group_mean(worth, batch.group, batch.counted)
        for group in torch.unique(batch.group[batch.counted & ~torch.isnan(worth)]).tolist():
            now, index = float(mean[batch.group == group][0]), indices[group]
            if index is None:
                continue
            before = self.rate.get(index)
            self.rate[index] = now if before is None else self.momentum * before + (1 - self.momentum) * now

    def state_dict(self) -> dict[str, Any]:
        return {
            "rate": [[i, r] for i, r in self.rate.items()],
            "pool": self.pool,
            "phase": self.phase,
            "shuffled": self.shuffled.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate = {int(i): r for i, r in state["rate"]}
        self.pool, self.phase = state["pool"], state["phase"]
        self.shuffled.load_state_dict(state["shuffled"])
