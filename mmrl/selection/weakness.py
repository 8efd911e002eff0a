"""Where the policy stays weak, and how many new problems of which kind that asks for: SwS."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.selection.outcomes import check_pilot, tried
from mmrl.selection.prompts import Shuffled, column
from mmrl.stages import stage


def weak(history: Sequence[float]) -> bool:
    """Whether success by visit is low, below a half in the mean, and its straight line does not rise."""
    if len(history) < 2 or fmean(history) >= 0.5:
        return False
    middle = (len(history) - 1) / 2
    return sum((visit - middle) * rate for visit, rate in enumerate(history)) <= 1e-12


def budget(failures: dict[str, float], total: int) -> dict[str, int]:
    """{kind: problems}, `total` together, in proportion to rates of failure; the largest rests are rounded up."""
    whole = sum(failures.values())
    exact = {kind: total * rate / whole if whole else 0.0 for kind, rate in failures.items()}
    given = {kind: int(share + 1e-9) for kind, share in exact.items()}
    left = (total if whole else 0) - sum(given.values())
    for kind in sorted(exact, key=lambda kind: (given[kind] - exact[kind], kind))[:left]:
        given[kind] += 1
    return given


def acceptable(agreeing: int, success: float, *, least: int = 4, low: float = 0.125, high: float = 0.875) -> bool:
    """Whether a written problem is kept: `least` answers of a strong model agree, the policy's success is within."""
    return agreeing >= least and low <= success <= high


@stage(
    "prompts",
    "sws",
    paper="SwS: weakness-driven synthesis, arXiv 2506.08989",
    formula="after a pilot: kind ~ its rate of weak prompts, then a weak prompt of it; weak: mean < .5, slope <= 0",
    confidence="partly",
)
class Weakness:
    """All prompts for a pilot, then those that stay low without rising, kinds in proportion to how often they do.

    pilot   steps that ask all prompts in turn; each must be visited twice at least
    column  of the data set that names a prompt's kind, such as its concept
    share   of a batch that is drawn so; the rest stays shuffled

    The paper has a strong model write new problems in that proportion. No writer ships: `plan(total)` says how many of
    which kind to have written, and `acceptable` which of them to keep. Without a weak prompt all are shuffled. Source:
    MasterVito/SwS, README; the test of the slope is our reading.
    """

    def __init__(self, *, pilot: int = 100, column: str = "source", share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"prompts 'sws': share {share}: expected 0 to 1")
        self.pilot, self.column, self.share = pilot, column, share
        self.history: dict[int, list[float]] = {}
        self.kind_of: list[str] = []
        self.shuffled = Shuffled()

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn of which kind each row is."""
        self.kind_of = [str(column(prompts, i, self.column, "prompts 'sws'")) for i in range(len(prompts))]

    def failures(self) -> dict[str, float]:
        """{kind: its share of weak prompts among those visited twice}."""
        visited = [i for i, rates in self.history.items() if len(rates) > 1]
        kinds: dict[str, list[bool]] = {}
        for index in visited:
            kinds.setdefault(self.kind_of[index], []).append(weak(self.history[index]))
        return {kind: fmean(each) for kind, each in sorted(kinds.items())}

    def plan(self, total: int) -> dict[str, int]:
        """How many new problems of each kind to have written."""
        return budget(self.failures(), total)

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`: weak ones first."""
        check_pilot("sws", self.pilot, count, size, first=not self.shuffled.taken)
        indices = self.coming(count, size, key)
        self.shuffled.taken += count - len(self._weak(count, key))
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        chosen = self._weak(count, key)
        return chosen + self.shuffled.coming(count - len(chosen), size, key)

    def _weak(self, count: int, key: Key) -> list[int]:
        wanted = int(self.share * count + 1e-9) if key.step >= self.pilot else 0
        rows: dict[str, list[int]] = {}
        for index in sorted(i for i, rates in self.history.items() if weak(rates)):
            rows.setdefault(self.kind_of[index], []).append(index)
        chosen: list[int] = []
        for kind, few in sorted(self.plan(wanted).items() if wanted else ()):
            draw = torch.randint(len(rows.get(kind, [0])), (few,), generator=key.at(purpose=f"sws {kind}").generator())
            chosen += [rows[kind][place] for place in draw.tolist()] if few else []
        return chosen

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        for each in tried(indices, batch, "sws"):
            self.history.setdefault(each.index, []).append(each.rate)

    def state_dict(self) -> dict[str, Any]:
        history = [[index, *rates] for index, rates in self.history.items()]
        return {"history": history, "shuffled": self.shuffled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {int(index): rates for index, *rates in state["history"]}
        self.shuffled.load_state_dict(state["shuffled"])
