"""Monitors: what looks at a run between its steps, adds numbers to the step's metrics, and may end it with a reason.

Every rank calls them alike, and each must give every rank the same answer, as a pure function of gathered numbers.
"""

from __future__ import annotations

from typing import Any, Protocol


class Monitor(Protocol):
    """ended  why the run should stop after this step, in one sentence; "" while it may go on"""

    ended: str

    def begin(self, step: int) -> None:
        """Before the first step, or after a resume at `step`."""

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """After step `step` (from 1); returns further metrics of it."""


def reason(monitors: list[Monitor]) -> str:
    """Why the run should stop: the first monitor that says so; "" if none does."""
    return next((each.ended for each in monitors if each.ended), "")
