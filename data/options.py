"""The options of a question: read in every form they have, and shown as lines `A. ...`.

A verifier counts options by their place, so labels that are there must be A, B, C ... in some order, and are put in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from mmrl.data.images import describe
from mmrl.data.sources import RowError

_LABEL = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(?=\S)")
RIGHT = 'a list such as ["left", "right"], or {"A": "left", "B": "right"}'


def label_of(text: str) -> str | None:
    """The letter of `A. left`, `(A) left`, `A) left`, `A: left`."""
    match = _LABEL.match(text)
    return match[1] or match[2] if match else None


def without_label(text: str) -> str:
    return _LABEL.sub("", text, count=1).strip() if label_of(text) else text.strip()


def read_options(value: Any) -> list[str] | None:
    """The options in the order A, B, C, ...; None where there are none. Raises RowError."""
    value = _parsed(value)
    if isinstance(value, Mapping):
        value = [f"{key}. {text}" for key, text in value.items() if text is not None]
    if value is None or (isinstance(value, Sequence) and not any(str(each).strip() for each in value)):
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | int | float) for v in value):
        raise RowError("options", f"expected {RIGHT}, got {describe(value)}")
    if len(value) > len(ascii_uppercase):
        raise RowError("options", f"holds {len(value)} options, the alphabet has {len(ascii_uppercase)} letters")
    texts = [str(each).strip() for each in value]
    return _in_order(texts)


def _parsed(value: Any) -> Any:
    """A string as the list it stands for: JSON, or one labelled option a line."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    if value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            raise RowError("options", f"expected {RIGHT}, got {describe(value)}") from None
    lines = [line for line in value.splitlines() if line.strip()]
    return lines if len(lines) > 1 and all(label_of(line) for line in lines) else value


def _in_order(texts: list[str]) -> list[str]:
    labels = [label_of(text) for text in texts]
    expected = list(ascii_uppercase[: len(texts)])
    if labels == expected or None in labels:
        return texts
    if sorted(labels) != expected:  # type: ignore[type-var]
        raise RowError("options", f"are labelled {', '.join(map(str, labels))}; expected {', '.join(expected)}")
    return [text for _, text in sorted(zip(labels, texts, strict=True))]  # type: ignore[type-var]


def option_lines(options: Sequence[str]) -> str:
    """One line an option, `A. left`."""
    texts = _bare(options)
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))


def _bare(options: Sequence[str]) -> list[str]:
    """Texts without labels, where all are labelled in order: `A. M. Turing` alone is a name."""
    labelled = [label_of(o) for o in options] == list(ascii_uppercase[: len(options)])
    return [without_label(o) for o in options] if labelled else [o.strip() for o in options]


def are_shown(options: Sequence[str], text: str) -> bool:
    """Whether the text lists the options already, each after its letter."""
    text = " ".join(text.split())
    return all(
        re.search(rf"(?<!\w)\(?{letter}[.):]?\)?\s*{re.escape(' '.join(option.split()))}", text)
        for letter, option in zip(ascii_uppercase, _bare(options), strict=False)
    )
