"""One prompt, or a few, for the whole run: 1-shot RLVR's choice by how much their success moved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev
from typing import Any

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.outcomes import check_pilot, tried
from mmrl.selection.prompts import Shuffled
from mmrl.stages import stage


def movement(history: Sequence[float]) -> float:
    """The population standard deviation of a prompt's success over its visits; 0 with fewer than two."""
    return pstdev(history) if len(history) > 1 else 0.0


@stage(
    "prompts",
    "1_shot_rlvr",
    paper="1-shot RLVR, arXiv 2504.20571",
    formula="after a pilot the k prompts of the largest std(success by visit), repeated until the batch is full",
    confidence="verified",
)
class OneShot:
    """All prompts for a pilot, then the few whose success moved most, again and again.

    keep   k: how many prompts are kept
    pilot  steps that ask all prompts in turn; each must be visited twice at least
    rows   dataset rows that an earlier run chose: no pilot then, these are repeated from the start

    Of equal movement the lower row is kept. Once a kept prompt is always solved its groups teach nothing, and only
    regularizers such as an entropy bonus move the weights, as the authors have it. Source: ypwang61/One-Shot-RLVR,
    data_selection.py.
    """

    def __init__(self, *, keep: int = 1, pilot: int = 100, rows: list[int] | None = None) -> None:
        if keep < 1 or rows == []:
            raise ConfigError("prompts '1_shot_rlvr': keep at least one prompt")
        self.keep, self.pilot = keep, pilot if rows is None else 0
        self.history: dict[int, list[float]] = {}
        self.chosen = rows
        self.shuffled = Shuffled()

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`; the choice falls when the pilot is over."""
        if key.step >= self.pilot and self.chosen is None:
            self.chosen = self.ranked()[: self.keep]
        if self.chosen is None:
            check_pilot("1_shot_rlvr", self.pilot, count, size, first=not self.shuffled.taken)
            return self.shuffled.select(count, size, key)
        return self.coming(count, size, key)

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        chosen = self.chosen
        if chosen is None and key.step < self.pilot:
            return self.shuffled.coming(count, size, key)
        chosen = chosen or self.ranked()[: self.keep]
        if outside := [i for i in chosen if not 0 <= i < size]:
            raise ConfigError(f"prompts '1_shot_rlvr': row {outside[0]} of a data set of {size}")
        return [chosen[place % len(chosen)] for place in range(count)]

    def ranked(self) -> list[int]:
        """Rows by how much their success moved, most first."""
        if not self.history:
            raise ConfigError("prompts '1_shot_rlvr': no prompt was scored in the pilot; name them by rows=[...]")
        return sorted(self.history, key=lambda i: (-movement(self.history[i]), i))

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`. The choice rests on the pilot alone."""
        if self.chosen is None:
            for each in tried(indices, batch, "1_shot_rlvr"):
                self.history.setdefault(each.index, []).append(each.rate)

    def state_dict(self) -> dict[str, Any]:
        history = [[index, *rates] for index, rates in self.history.items()]
        return {"history": history, "chosen": self.chosen, "shuffled": self.shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {int(index): rates for index, *rates in state["history"]}
        self.chosen = state["chosen"]
        self.shuffled.load_state_dict(state["shuffled"])
