"""Whether a row has a truth, as its column says it."""

from __future__ import annotations

from typing import Any

SAID = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_labelled(value: Any) -> bool:
    """True or false, 1 or 0, or a word for it. ValueError for anything else.

    >>> is_labelled(1), is_labelled("false")
    (True, False)
    """
    said = SAID.get(str(value).strip().casefold().removesuffix(".0"))
    if said is None:
        raise ValueError(f"labelled is {value!r:.60}; expected true or false")
    return said
