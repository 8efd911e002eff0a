"""What a report of steps does besides: tell notes, write down what was found of the model, call another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrl.policies.base import Policy
from mmrl.shown import tell
from mmrl.training.storage import write_atomically
from mmrl.training.trainer import Report


def each(first: Callable[[int, Any], None], second: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    """One after the other."""

    def call(step: int, what: Any) -> None:
        first(step, what)
        second(step, what)

    return call


def telling(notes: list[str], report: Report) -> Report:
    """What is worth a line and no error is said once the first step is made."""

    def told(step: int, metrics: dict[str, Any]) -> None:
        while notes:
            tell(notes.pop(0))
        report(step, metrics)

    return told


def noting_the_model(report: Report, policy: Policy, folder: Path) -> Report:
    """Write down, once it is known, what the policy found out about its model."""
    written: dict[str, Any] = {}

    def noted(step: int, metrics: dict[str, Any]) -> None:
        if policy.found and policy.found != written:
            written.update(policy.found)
            write_atomically(folder / "model.json", json.dumps(written, indent=1))
        report(step, metrics)

    return noted
