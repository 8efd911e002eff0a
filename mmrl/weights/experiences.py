"""Lessons in words: what a group's winners did that its losers did not, kept as a short list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.tools import tool

ADD, UPDATE, DELETE = "ADD", "UPDATE", "DELETE"
Operation = tuple[str, int | None, str]
"""What to do, with which entry, and the new text."""


@tool(
    "training_free_grpo",
    command="mmrl train vlm CONFIG recipe=training_free_grpo",
    paper="Training-Free GRPO, arXiv 2510.08191; code TencentCloudADP/youtu-agent",
    formula="of groups with 0 < mean r < 1 the policy says ADD x, UPDATE i x, DELETE i; prompts hold E <- merge(E)",
    confidence="reconstructed",
    modalities=("vlm", "video"),
)
def merged(entries: Mapping[int, str], operations: Sequence[Operation], most: int = 30) -> dict[int, str]:
    """The list of lessons after some operations: groups are compared in words, and weights stay as they are.

    entries  {number: text}; new ones are numbered on. `most`: the oldest beyond it are left out
    An UPDATE or DELETE of an entry that is not there does nothing, and a text that is there already is not added twice.
    Source: secondary notes on the release; its separate call that merges a batch's operations is left out, and the cap
    is ours.
    """
    kept, following = dict(entries), max(entries, default=0) + 1
    for what, number, text in operations:
        if what == ADD and text not in kept.values():
            kept[following], following = text, following + 1
        elif what == UPDATE and number in kept:
            kept[number] = text
        elif what == DELETE and number is not None:
            kept.pop(number, None)
    return dict(sorted(kept.items())[-most:])


def operations_in(text: str) -> list[Operation] | None:
    """The operations of a JSON list in an answer; None where there is none, or one that is not as it should be.

    [{"operation": "ADD", "text": "..."}, {"operation": "UPDATE", "number": 1, "text": "..."}, ...]
    """
    found = re.search(r"\[.*\]", text, re.DOTALL)
    try:
        listed = json.loads(found[0]) if found else None
        return [_operation(entry) for entry in listed] if isinstance(listed, list) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _operation(entry: Any) -> Operation:
    what, number, text = str(entry["operation"]).upper(), entry.get("number"), str(entry.get("text", "")).strip()
    known = isinstance(number, int) and not isinstance(number, bool)
    if what not in (ADD, UPDATE, DELETE) or (what != ADD and not known) or (what != DELETE and not text):
        raise ValueError(f"no operation: {entry}")
    return what, number if known else None, text


def as_text(entries: Mapping[int, str], head: str) -> str:
    """What a prompt is told: `head` and the numbered lessons; nothing where there is none."""
    return "\n".join([head, *(f"{number}. {text}" for number, text in entries.items())]) if entries else ""
