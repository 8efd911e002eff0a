"""Counting with boxes: how many there are, and where each of them is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.boxes import Box, boxes, says_none, true_boxes
from mmrl.rewards.grounding import matched_iou
from mmrl.rewards.matching import is_wall
from mmrl.rewards.numbers import number
from mmrl.rewards.spelled import tidy
from mmrl.rewards.tasks import UNREAD, Verdict, kind

COUNTS = ("count", "number", "total")
_STATED = re.compile(
    r"\b(?:count|total|number)(?: count| of [a-z ]{1,30})?\s*(?:is|[:=])\s*(\d{1,6})\b"
    r"|\b(?:there (?:is|are)|i (?:see|counted|count)|found|detected)\s+(\d{1,6})(?= [a-z])", re.IGNORECASE
)  # fmt: skip
"""`Total: 3`, `There are 3 apples: ...`"""


def true_count(solution: Any) -> tuple[int, list[Box] | None]:
    """(how many, their boxes or None); RewardError where the two disagree."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    if value is None or isinstance(value, int | float):
        read = number(answers.truth(solution))
        if read is None or read != int(read) or read < 0:
            answers.refuse(solution, "is no count", '{"count": 2, "boxes": [[x1, y1, x2, y2], ...]}, or the boxes')
        return int(read), None
    named = next((value[k] for k in COUNTS if k in value), None) if isinstance(value, Mapping) else None
    rest = {k: v for k, v in value.items() if k not in COUNTS} if isinstance(value, Mapping) else value
    found = true_boxes(rest) if rest != {} else None
    if named is None and found is None:
        answers.refuse(solution, "has neither count nor boxes", '{"count": 2, "boxes": [[x1, y1, x2, y2], ...]}')
    count = len(found) if named is None else named
    if isinstance(count, bool) or not isinstance(count, int) or (found is not None and len(found) != count):
        answers.refuse(solution, "has a count that is not that of its boxes", "as many boxes as it counts")
    return count, found


def said_count(answer: str, found: list[Box]) -> int | None:
    """The count that an answer states, else that of its boxes."""
    value = answers.json_value(answer)
    if isinstance(value, Mapping) and (stated := next((value[k] for k in COUNTS if k in value), None)) is not None:
        read = None if isinstance(stated, bool) else number(str(stated))
        return int(read) if read is not None and read == int(read) else None
    told = {int(m[1] or m[2]) for m in _STATED.finditer(tidy(answers.bare(answer)))} if found else set()
    if told:
        return told.pop() if len(told) == 1 else None
    if not found:
        read = 0.0 if says_none(answer) else number(answer)
        return int(read) if read is not None and read == int(read) else None
    return len(found)


@kind(
    "counting_boxes",
    read=true_count,
    valid=lambda text: bool(boxes(text)) or number(text) is not None or says_none(text),
    answer='boxes as for `boxes`, or `{"count": 2, "boxes": [...]}`; `[]` for none',
    truth="the same; a count alone is compared with the number of boxes",
    aliases=("count_boxes", "counting_grounding", "grounded_counting"),
)
def counting_boxes(answer: str, right: tuple[int, list[Box] | None], *, count_weight: float = 0.5) -> Verdict:
    """`count_weight` for the right count, the rest for the boxes: IoUs of the best matching over the larger count."""
    count, true = right
    found = boxes(answer)
    said = said_count(answer, found)
    if said is None:
        return UNREAD
    counted = float(said == count)
    if is_wall(len(found), count):
        return Verdict(0.0, True, {"count": 0.0, "boxes": 0.0})
    if true is None:
        return Verdict(counted, True, {"count": counted, "boxes": float(len(found) == count)})
    placed = matched_iou(found, true)
    score = count_weight * counted + (1 - count_weight) * placed if found or not true else 0.0
    return Verdict(score, True, {"count": counted, "boxes": placed})
