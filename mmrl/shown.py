"""Text of others on a terminal: control codes are shown, never obeyed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

DIGITS = 6
"""Of numbers for people: float32 has no more."""
_KEPT = "\n\t"
_CODES = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and halves of characters, which cannot be written."""


def shown(text: str) -> str:
    r"""`text` with `\\x1b` in place of an escape: what a data set or an error says cannot move the cursor or set the
    title."""
    return _CODES.sub(lambda found: found[0] if found[0] in _KEPT else _escape(found[0]), text)


def one_line(text: str) -> str:
    """The same on one line."""
    return shown(" ".join(text.split()))


def rounded(value: Any) -> Any:
    """Plain data with its numbers as people read them: 0.45, not the 0.44999998807907104 that float32 makes of it."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def tell(text: str) -> None:
    """A line about the run that is no error, on standard error."""
    print(f"mmrl: {shown(text)}", file=sys.stderr, flush=True)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
