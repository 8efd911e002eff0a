"""How many states went through a generator's transformer: what methods are compared by at equal cost.

One call is one state at one time, once through; a guided velocity is two. A call with gradient is counted as one too,
and apart, since its backward pass costs about two more. Evaluation, monitors and the self-check are charged to nobody:
a resumed run repeats some of them, and its counts are those of one that never stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

KINDS = ("sampled", "scored", "trained")
"""Of rollouts; of passes without gradient; of passes with gradient."""
WATCHED = "watched"
UNCONDITIONAL, REUSED = "unconditional", "guidance/reused"
"""Unconditional velocities that updates read, and those of them that their rollouts had found."""


class Calls:
    """Counts by purpose. `purpose` is what passes without gradient are for: "sampled", "scored", or "watched", which
    is not told. `share` is that of the blocks that run now, where some are reused (`reuse`)."""

    def __init__(self) -> None:
        self.purpose = "sampled"
        self.counts: defaultdict[str, float] = defaultdict(float)
        self.share = 1.0

    def add(self, rows: int, passes: int = 1, *, reused: bool = False) -> None:
        """reused: the last of the passes is not made, since what it finds is known (`unconditional`)"""
        kind = "trained" if torch.is_grad_enabled() else self.purpose
        self.counts[kind] += rows * (passes - reused) * self.share
        if kind == "trained" and passes > 1:
            self.counts[UNCONDITIONAL] += rows
            self.counts[REUSED] += rows * reused

    @contextmanager
    def shared(self, share: float) -> Iterator[None]:
        """What is counted inside ran this share of its blocks."""
        self.share = share
        try:
            yield
        finally:
            self.share = 1.0

    def told(self) -> dict[str, float]:
        """{"calls/sampled": ...} since it was asked for last."""
        counts, self.counts = self.counts, defaultdict(float)
        told = {f"calls/{kind}": float(counts[kind]) for kind in KINDS}
        return told | {kind: float(counts[kind]) for kind in (UNCONDITIONAL, REUSED) if counts[UNCONDITIONAL]}


def uncounted(method: Callable) -> Callable:
    """A method of a policy whose calls are left out."""

    @wraps(method)
    def called(policy: Any, *arguments: Any, **named: Any) -> Any:
        counts = policy.calls.counts.copy()
        try:
            return method(policy, *arguments, **named)
        finally:
            policy.calls.counts = counts

    return called


def shares(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of all ranks as metrics: what was reused as a share."""
    metrics = dict(counts)
    if (asked := metrics.pop(UNCONDITIONAL, 0.0)) and REUSED in metrics:
        metrics[REUSED] /= asked
    return metrics


def spent(metrics: Mapping[str, Any]) -> float:
    """Calls of a step."""
    return sum(metrics.get(f"calls/{kind}", 0.0) for kind in KINDS)
