"""When it happened: intersection over union of time intervals, in seconds."""

from __future__ import annotations

import re
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.registry import reward

_STAMP = r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)"
_BETWEEN = r"\s*(?:s|sec|seconds?)?\s*(?:to|and|until|-|\u2013)\s*"
_RANGE = re.compile(rf"(?<![\d.:])(?:{_STAMP}){_BETWEEN}(?:{_STAMP})(?![\d:])")
_KEYS = (("start_time", "end_time"), ("start", "end"))

Interval = tuple[float, float]


def interval(text: str) -> Interval | None:
    """`{"time": [s, e]}`, `{"start_time": s, "end_time": e}`, `[s, e]`, or "from 2 to 8.5 seconds", "0:02 - 0:08"."""
    found = _from_json(answers.json_value(text))
    if found:
        return found
    matches = list(_RANGE.finditer(" ".join(text.split())))
    if len(matches) != 1:
        return None
    groups = matches[0].groups()
    return _seconds(groups[:4]), _seconds(groups[4:])


def _from_json(value: Any) -> Interval | None:
    if isinstance(value, dict):
        for first, last in _KEYS:
            if first in value and last in value:
                return _pair([value[first], value[last]])
        value = value.get("time")
    return _pair(value)


def _pair(value: Any) -> Interval | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    start, end = (each if isinstance(each, int | float) else answers.number(str(each)) for each in value)
    return None if start is None or end is None else (float(start), float(end))


def _seconds(groups: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, plain = groups
    return float(plain) if plain else 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)


def overlap(a: Interval, b: Interval) -> float:
    """Intersection over union; an interval that ends before it starts overlaps nothing."""
    if a[1] < a[0] or b[1] < b[0]:
        return 0.0
    union = max(a[1], b[1]) - min(a[0], b[0])
    shared = min(a[1], b[1]) - max(a[0], b[0])
    if shared <= 0:
        return 0.0
    return shared / union


def when(completion: str, solution: Any) -> float:
    """Temporal IoU of the predicted and the true interval; 0 for an answer that holds no single interval."""
    right = true_interval(solution)
    predicted = interval(answers.extract(completion))
    return overlap(predicted, right) if predicted else 0.0


def true_interval(solution: Any) -> Interval:
    """RewardError when the column holds no interval of positive length."""
    if isinstance(solution, dict | list | tuple):
        found = _from_json(list(solution) if isinstance(solution, tuple) else solution)
    else:
        found = interval(answers.truth(solution))
    if not found or found[1] <= found[0]:
        raise RewardError(f'solution {solution!r} is no time interval; expected {{"time": [start, end]}} in seconds')
    return found


@reward("temporal_iou", success=True)
def temporal_iou(completions, solution) -> list[float]:
    """Overlap of the answered and the true time interval over their union."""
    return [when(c, s) for c, s in zip(completions, solution, strict=True)]
