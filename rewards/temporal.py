"""When it happened: intersection over union of time intervals, in seconds."""

from __future__ import annotations

from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.intervals import Interval, from_value, interval
from mmrl.rewards.registry import checks, reward


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
    structured = isinstance(solution, dict | list | tuple)
    found = from_value(solution) if structured else interval(answers.truth(solution))
    if not found or found[1] <= found[0]:
        answers.refuse(solution, "is no time interval", '{"time": [start, end]} in seconds, start before end')
    return found


@reward("temporal_iou", success=True, check=checks(true_interval))
def temporal_iou(completions, solution) -> list[float]:
    """Overlap of the answered and the true time interval over their union."""
    return [when(c, s) for c, s in zip(completions, solution, strict=True)]
