"""How many states went through a generator's transformer: what methods are compared by at equal cost.

One call is one state at one time, once through; a guided velocity is two. A call with gradient is counted as one too,
and apart, since its backward pass costs about two more.
"""

from __future__ import annotations

from collections import Counter

import torch

KINDS = ("sampled", "scored", "trained", "watched")
"""Of rollouts; of passes without gradient; of passes with gradient; of evaluation and monitors."""


class Calls:
    """Counts by purpose. `purpose` is what passes without gradient are for: "sampled", "scored" or "watched"."""

    def __init__(self) -> None:
        self.purpose = "sampled"
        self.counts: Counter[str] = Counter()

    def add(self, rows: int, passes: int = 1) -> None:
        self.counts["trained" if torch.is_grad_enabled() else self.purpose] += rows * passes

    def told(self) -> dict[str, float]:
        """{"calls/sampled": ...} since it was asked for last."""
        counts, self.counts = self.counts, Counter()
        return {f"calls/{kind}": float(counts[kind]) for kind in KINDS}


def spent(metrics: dict[str, float]) -> float:
    """Calls of a step that training is charged for: all but those that only watch."""
    return sum(metrics.get(f"calls/{kind}", 0.0) for kind in KINDS if kind != "watched")
