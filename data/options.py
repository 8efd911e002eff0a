"""The options of a question: read in every form they have, and shown as lines `A. ...`.

    ["left", "right"]    ["A. left", "B. right"]    ["1. left", "2. right"]    {"A": "left", "B": "right"}
    {"label": ["A", "B"], "text": ["left", "right"]}                [{"label": "A", "text": "left"}, ...]
    "A. left\\nB. right"   "(A) left (B) right"   '["left", "right"]' (JSON, or Python's repr)

A verifier counts options by their place, so labels that are there must be A, B, C ... in some order, and are put in
it. Options numbered 1, 2, 3 ... keep their numbers: the truth is one of them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from mmrl.data.images import describe
from mmrl.data.sources import RowError

_LABEL = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(?=\S)")
_SMALL = re.compile(r"\s*(?:\(([a-z])\)|([a-z])[.)])\s*(?=\S)")
_NUMBERED = re.compile(r"\s*(?:\((\d{1,2})\)|(\d{1,2})[.)](?!\d)|(\d{1,2}):(?=\s+\D))\s*(?=\S)")
_INLINE = re.compile(r"(?:(?<=\s)|^)(?:\(([A-Z])\)|([A-Z])[.):](?=\s))\s*")
_LABELS, _TEXTS = ("label", "labels", "key", "id"), ("text", "texts", "choices", "options", "content", "value")
RIGHT = 'a list such as ["left", "right"], or {"A": "left", "B": "right"}'


def label_of(text: str) -> str | None:
    """The letter of `A. left`, `(A) left`, `A) left`, `A: left`."""
    match = _LABEL.match(text)
    return match[1] or match[2] if match else None


def without_label(text: str) -> str:
    return _LABEL.sub("", text, count=1).strip() if label_of(text) else text.strip()


def read_options(value: Any) -> list[str] | None:
    """The options in the order A, B, C, ...; None where there are none. Raises RowError."""
    given = value
    value = _labelled(_parsed(value))
    if value is None or (isinstance(value, Sequence) and not any(str(each).strip() for each in value)):
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | int | float) for v in value):
        raise RowError("options", f"expected {RIGHT}, got {describe(given)}")
    if len(value) > len(ascii_uppercase):
        raise RowError("options", f"holds {len(value)} options, the alphabet has {len(ascii_uppercase)} letters")
    return _in_order(_capitals([str(each).strip() for each in value]))


def _parsed(value: Any) -> Any:
    """A string as the list it stands for: JSON, Python's repr, one labelled option a line, or labelled in a row."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    if value.lstrip().startswith(("[", "{")):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        raise RowError("options", f"expected {RIGHT}, got {describe(value)}")
    lines = [line for line in value.splitlines() if line.strip()]
    if len(lines) > 1 and (_numbered(lines) or all(map(label_of, _capitals(lines)))):
        return lines
    starts = list(_INLINE.finditer(value))
    if len(starts) < 2 or [m[1] or m[2] for m in starts] != list(ascii_uppercase[: len(starts)]) or starts[0].start():
        return value
    ends = [*(match.start() for match in starts[1:]), len(value)]
    return [value[m.start() : end].strip().rstrip(",;|").strip() for m, end in zip(starts, ends, strict=True)]


def _labelled(value: Any) -> Any:
    """Mappings as a list of labelled texts; what cannot be one stays as it is, and is refused."""
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        made = [_of_mapping(each, one=True) for each in value]
        return [each[0] for each in made] if all(len(each) == 1 for each in made) else value
    return value


def _of_mapping(value: Mapping[str, Any], *, one: bool = False) -> list[Any]:
    """`{"A": "left", ...}`, or labels and texts under their names: lists, or, of `one` option, single values."""
    named = {str(name).lower(): each for name, each in value.items() if each is not None}
    labels = next((named[name] for name in _LABELS if name in named), None)
    texts = next((named[name] for name in _TEXTS if name in named), None)
    if one and texts is not None:
        return [texts if labels is None else _joined(labels, texts)]
    if isinstance(texts, list | tuple) and len(named) <= 2:
        if labels is None:
            return list(texts)
        if not isinstance(labels, list | tuple) or len(labels) != len(texts):
            raise RowError("options", f"{len(texts)} texts, and labels {describe(labels)}", "give one label a text")
        return [_joined(*pair) for pair in zip(labels, texts, strict=True)]
    return [_joined(label, text) for label, text in value.items() if text is not None]


def _joined(label: Any, text: Any) -> Any:
    """`A. left`; a text that is none is left for the caller to refuse."""
    return f"{str(label).strip().strip('().:')}. {text}" if isinstance(text, str | int | float) else text


def _capitals(texts: list[str]) -> list[str]:
    """`a) left` as `A. left`, where all are labelled so, in some order."""
    small = [_SMALL.match(text) for text in texts]
    labels = [match[1] or match[2] for match in small if match]
    if sorted(labels) != list(ascii_lowercase[: len(texts)]):
        return texts
    return [f"{(m[1] or m[2]).upper()}. {text[m.end() :]}" for m, text in zip(small, texts, strict=True) if m]


def _numbered(texts: Sequence[str]) -> bool:
    """Whether these are `1. left`, `2. right`, ..."""
    matches = [_NUMBERED.match(text) for text in texts]
    return [m and (m[1] or m[2] or m[3]) for m in matches] == [str(i) for i in range(1, len(texts) + 1)]


def _in_order(texts: list[str]) -> list[str]:
    labels = [label_of(text) for text in texts]
    expected = list(ascii_uppercase[: len(texts)])
    if labels == expected or None in labels:
        return texts
    if sorted(labels) != expected:  # type: ignore[type-var]
        raise RowError("options", f"are labelled {', '.join(map(str, labels))}; expected {', '.join(expected)}")
    return [text for _, text in sorted(zip(labels, texts, strict=True))]  # type: ignore[type-var]


def option_lines(options: Sequence[str]) -> str:
    """One line an option, `A. left`; numbered ones keep their numbers."""
    return "\n".join(f"{label}. {text}" for label, text in zip(_labels(options), _bare(options), strict=True))


def _labels(options: Sequence[str]) -> list[str]:
    if _numbered(options):
        return [str(i) for i in range(1, len(options) + 1)]
    return list(ascii_uppercase[: len(options)])


def _bare(options: Sequence[str]) -> list[str]:
    """Texts without labels, where all are labelled in order: `A. M. Turing` alone is a name."""
    if _numbered(options):
        return [_NUMBERED.sub("", option, count=1).strip() for option in options]
    labelled = [label_of(o) for o in options] == list(ascii_uppercase[: len(options)])
    return [without_label(o) for o in options] if labelled else [o.strip() for o in options]


def are_shown(options: Sequence[str], text: str) -> bool:
    """Whether the text lists the options already, each after its label."""
    text = " ".join(text.split())
    return all(
        re.search(rf"(?<!\w)\(?{label}[.):]?\)?\s*{re.escape(' '.join(option.split()))}", text)
        for label, option in zip(_labels(options), _bare(options), strict=True)
    )
