"""What prompts of a kind come to, as the belief that one of them begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.errors import ConfigError
from mmrl.record import Prompt
from mmrl.selection.outcomes import Tried
from mmrl.selection.prompts import column

UNKNOWN = (0.5, 1 / 6)
"""Mean and within of an even belief."""
BORROWED = 2.0
"""Groups of all kinds that a kind counts beside its own; and even groups beside those of all."""
WEAKEST, STRONGEST = 0.3, 8.0
"""Answers that a kind is worth at least and at most."""


def beta_of(mean: float, within: float) -> tuple[float, float]:
    """(a, b) of the Beta with E[p] = `mean` and E[p (1 - p)] = `within`.

    With s = a + b, E[p (1 - p)] = mean (1 - mean) s / (s + 1). A kind whose prompts are each always right or always
    wrong has s near 0, one whose prompts are alike has a large s.
    """
    between = mean * (1 - mean) - within
    strength = min(max(within / max(between, 1e-6), WEAKEST), STRONGEST)
    return strength * mean, strength * (1 - mean)


class Kinds:
    """Success by kind of prompt: over groups, their mean and what they varied within themselves, both fading.

    names  columns of the data set; prompts that agree in all of them are of one kind
    keep   share of what is known that is left a step later
    reader who asks, in errors
    """

    def __init__(self, names: Sequence[str], keep: float, reader: str) -> None:
        self.names, self.keep, self.reader = names, keep, reader
        self.of: list[str] = []
        self.met: dict[str, tuple[float, float, float, int]] = {}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn of which kind each row is."""
        rows = range(len(prompts))
        self.of = ["|".join(str(column(prompts, i, name, self.reader)) for name in self.names) for i in rows]

    def known(self, kind: str, step: int) -> tuple[float, float, float]:
        """Groups, and the sums of their success and of their p (1 - p), as they count at `step`."""
        groups, success, within, since = self.met.get(kind, (0.0, 0.0, 0.0, step))
        share = self.keep ** max(step - since, 0)
        return share * groups, share * success, share * within

    def beliefs(self, step: int) -> dict[str, tuple[float, float]]:
        """{kind: (a, b)}: a kind met seldom leans on what all kinds together come to, and that on an even belief."""
        if not self.of:
            raise ConfigError(f"{self.reader} has not met the data set: call `meet(prompts)` first")
        known = {kind: self.known(kind, step) for kind in dict.fromkeys(self.of)}
        groups, success, within = (sum(each) for each in zip((0.0, 0.0, 0.0), *known.values(), strict=True))
        mean, spread = _leaning(groups, success, within, *UNKNOWN)
        return {kind: beta_of(*_leaning(*sums, mean, spread)) for kind, sums in known.items()}

    def observe(self, seen: Sequence[Tried], step: int) -> None:
        for each in seen:
            kind, rate, count = self.of[each.index], each.rate, each.count
            groups, success, within = self.known(kind, step)
            varied = rate * (1 - rate) * count / max(count - 1, 1)
            self.met[kind] = groups + 1, success + rate, within + varied, step

    def state_dict(self) -> list[list[Any]]:
        return [[kind, *sums] for kind, sums in self.met.items()]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        self.met = {kind: (groups, success, within, int(step)) for kind, groups, success, within, step in state}


def _leaning(groups: float, success: float, within: float, mean: float, spread: float) -> tuple[float, float]:
    """Mean success and p (1 - p) of `groups` groups, and of `BORROWED` ones that came to `mean` and `spread`."""
    whole = groups + BORROWED
    return (success + BORROWED * mean) / whole, (within + BORROWED * spread) / whole
