"""Prompts in pairs, one that is rarely solved and one that rarely fails: bidirectional pairing."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.outcomes import tried
from mmrl.selection.prompts import Shuffled
from mmrl.stages import stage


@stage(
    "prompts",
    "pairing_wgrpo",
    paper="Weighted GRPO with bidirectional pairing, arXiv 2602.03452",
    formula="pairs of a prompt with 0 < p <= low and one with high <= p < 1",
    confidence="reconstructed",
)
class Pairs:
    """Consecutive prompts are a pair: a hard one that was solved, an easy one that failed, at their last visit.

    low   success rate up to which a prompt is hard
    high  success rate from which a prompt is easy

    While fewer pairs than the batch wants are known, the rest of it is shuffled, which finds more. Pairs stand first,
    so that advantage `pairing_wgrpo` weighs them together. Source: abstract; the bounds are ours.
    """

    def __init__(self, *, low: float = 0.25, high: float = 0.75) -> None:
        if not 0 < low < high < 1:
            raise ConfigError(f"prompts 'pairing_wgrpo': low {low}, high {high}: expected 0 < low < high < 1")
        self.low, self.high = low, high
        self.rate: dict[int, float] = {}
        self.shuffled = Shuffled()

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`: hard, easy, hard, easy, then shuffled ones."""
        indices = self.coming(count, size, key)
        self.shuffled.taken += count - 2 * self._pairs(count)
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        pairs, draw = self._pairs(count), key.at(purpose="pairing_wgrpo").generator()
        hard, easy = (
            [kind[place] for place in torch.randperm(len(kind), generator=draw).tolist()[:pairs]]
            for kind in self.kinds()
        )
        paired = [index for pair in zip(hard, easy, strict=True) for index in pair]
        return paired + self.shuffled.coming(count - len(paired), size, key)

    def kinds(self) -> tuple[list[int], list[int]]:
        """Rows that are hard and solvable, and rows that are easy and brittle."""
        hard = sorted(i for i, p in self.rate.items() if 0 < p <= self.low)
        easy = sorted(i for i, p in self.rate.items() if self.high <= p < 1)
        return hard, easy

    def _pairs(self, count: int) -> int:
        return min(count // 2, *map(len, self.kinds()))

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        for each in tried(indices, batch, "pairing_wgrpo"):
            self.rate[each.index] = each.rate

    def state_dict(self) -> dict[str, Any]:
        return {"rate": [[index, rate] for index, rate in self.rate.items()], "shuffled": self.shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate = {int(index): rate for index, rate in state["rate"]}
        self.shuffled.load_state_dict(state["shuffled"])
