"""Equations that do not hold: steps of a worked answer that can be checked without knowing its truth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.registry import reward

_NUMBER = r"(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_SIGN = r"(?:\*\*|[-+*/\u00d7\u00f7^])"
_TERM = rf"(?:[-(]\s*)*{_NUMBER}(?:\s*\))*"
_SIDE = rf"{_TERM}(?:\s*{_SIGN}\s*{_TERM})*"
_EQUATION = re.compile(rf"(?<![\w.,]){_SIDE}(?:\s*=\s*{_SIDE})+(?!\w|[.,]\d|\s*[=%(]|\s*{_SIGN}\s*[\w(])")
_COMPUTES = re.compile(rf"[\d)]\s*{_SIGN}")
_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", ",": None})


def value_of(side: str) -> float | None:
    """What one side of an equation comes to; None where it is no arithmetic."""
    from mmrl.rollout.environments.calculator import calculate
    from mmrl.rollout.environments.calls import BadCall

    try:
        return calculate(side.translate(_SIGNS).replace("^", "**").strip().rstrip("."))
    except BadCall:
        return None


def wrong_equations(text: str, tolerance: float) -> tuple[list[list[int]], int]:
    """Spans [start, end] of the equations whose sides differ, and how many there were that could be read.

    >>> wrong_equations("2 + 3 = 6, so 6 * 2 = 12", 1e-6)
    ([[0, 9]], 2)
    """
    spans, read = [], 0
    for found in _EQUATION.finditer(text):
        values = [value_of(side) for side in found[0].split("=")]
        if _goes_on_from(text[: found.start()].rstrip(), found[0]) or None in values or not _COMPUTES.search(found[0]):
            continue
        read += 1
        left, *others = [value for value in values if value is not None]
        if any(abs(value - left) > tolerance * max(1.0, abs(left)) for value in others):
            spans.append([found.start(), found.end()])
    return spans, read


def _goes_on_from(before: str, equation: str) -> bool:
    """Whether an equation is the end of a longer one whose beginning cannot be computed: `x + 1 + 1 = 3`."""
    return before[-1:] in set("+-*/^=(\u00d7\u00f7") - {""} or (equation[0] == "-" and before[-1:].isalnum())


@reward(
    "equations",
    isolated=False,
    method="scope",
    paper="SCOPE: step-wise correction, 2026",
    formula="share of the equations that hold; flagged_tokens = those that do not",
    confidence="ours",
)
def equations(completions: Sequence[str], *, tolerance: float = 0.005) -> list[dict[str, Any]]:
    """Share of an answer's equations that hold, 1 without any; `columns: [flagged_tokens]` are those that do not.

    tolerance  how far two sides may lie apart, of the larger of 1 and the first: what is rounded is no mistake

    A checker of steps for `scope` that asks nobody: numbers and + - * / ^ on both sides of "=".
    """
    if tolerance < 0:
        raise RewardError(f"equations: tolerance={tolerance}; expected 0 or more")
    made = []
    for text in completions:
        spans, read = wrong_equations(text, tolerance)
        made.append({"score": 1 - len(spans) / read if read else 1.0, "flagged_tokens": spans})
    return made
