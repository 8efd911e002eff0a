"""Values that a text names only to deny them: `not [1, 2, 3, 4]`, `anywhere but (5, 5)`, `2 to 8 is wrong`.

Readers of boxes, points, tracks and JSON look for brackets and digits, whatever the words around them say; these are
the words that make such a value no answer. Of `not (5, 5) but (9, 9)` the readers themselves take the later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmrl.rewards.languages import stated

LONGEST = 2000
_NOT = r"(?:\b(?:not|never|neither|nor|cannot|outside|except|excluding|any(?:where|thing)? but|all but)\b|n't\b)"
_BEFORE = re.compile(
    rf"(?:{_NOT}|\bthere (?:is|are) no\b)(?!\s+(?:only|just|sure|certain)\b)"
    r"(?:[^\w.,;:!?\n]+\w+){0,3}[^\w.,;:!?\n]*$",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"[^\w.,;:!?\n]*(?:\.\s*)?\s*(?:(?:is|are|was|were)\s+(?:not|wrong|incorrect|false)\b|(?:is|are|was|were)n't\b)"
    r"(?!.*(?:\d|\b(?:but|correct|right)\b))",
    re.IGNORECASE | re.DOTALL,
)
_VALUE = re.compile(r"[\d\[{(<]")
_LAST = re.compile(r"[\d\]})>](?=[^\d\]})>]*$)")
_INSTEAD = re.compile(r"[\d\])}>][\s,;.]*(?:\bbut\b|\binstead\b|\brather\b)[^\d\[{(<]{0,40}[\d\[{(<]", re.IGNORECASE)


def denied(text: str) -> bool:
    """Whether the first value of a text is denied and no other told instead, or its last is said to be wrong."""
    if len(text) > LONGEST:
        return False
    text = stated(text)
    first, last = _VALUE.search(text), _LAST.search(text)
    if first is None or last is None:
        return False
    before = _BEFORE.search(text, 0, first.start()) and not _INSTEAD.search(text)
    return bool(before or _AFTER.match(text, last.end()))


def agreed(value: Mapping[str, Any], names: Iterable[str]) -> Any:
    """What a mapping holds under several names for one thing; None for nothing, and for two things that differ."""
    held = [value[name] for name in names if value.get(name) is not None]
    return held[0] if held and all(str(each) == str(held[0]) for each in held) else None
