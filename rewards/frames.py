"""A reward of pictures on videos: called on every frame, its answers pooled.

rewards: [{name: clip_score, frames: min}]        any reward that reads pictures, by name or your own

mean     every frame counts alike       min, max  the worst, the best frame
median   one odd frame costs nothing    first, last
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from mmrl.rewards.calls import WHOLE, Inputs, Outcome

Pooling = Literal["mean", "min", "max", "median", "first", "last"]
POOLINGS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "min": min,
    "max": max,
    "median": statistics.median,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}

Call = Callable[[Inputs], list[Outcome]]


def framewise(call: Call, pooling: Pooling) -> Call:
    """`call`, which reads pictures, on videos: lists of PIL images. A row lacks what one of its frames lacks."""

    def pooled(inputs: Inputs) -> list[Outcome]:
        for completion in inputs.completions:
            if not isinstance(completion, list | tuple) or not completion:
                raise ValueError(f"frames: {pooling} reads videos, lists of images; got {_told(completion)}")
        counts = [len(completion) for completion in inputs.completions]
        outcomes = call(_unrolled(inputs, counts))
        rows, start = [], 0
        for count in counts:
            rows.append(_pooled(outcomes[start : start + count], POOLINGS[pooling]))
            start += count
        return rows

    return pooled


def _unrolled(inputs: Inputs, counts: Sequence[int]) -> Inputs:
    """Every frame as a row of its own."""

    def repeated(values: Sequence[Any]) -> list[Any]:
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]

    frames = [frame for completion in inputs.completions for frame in completion]
    columns = {name: repeated(values) for name, values in inputs.columns.items()}
    return Inputs(repeated(inputs.prompts), frames, columns)


def _pooled(frames: Sequence[Outcome], pool: Callable[[Sequence[float]], float]) -> Outcome:
    problems = {key: f"frame {t}: {why}" for t, each in enumerate(frames) for key, why in each.problems.items()}
    keys = {key for each in frames for key in each.values}
    if WHOLE in problems and not keys:
        return Outcome({}, problems)
    values = {}
    for key in sorted(keys):
        numbers = [each.values.get(key, math.nan) for each in frames]
        missing = any(map(math.isnan, numbers))
        values[key] = math.nan if missing else pool(numbers)
        if missing:
            problems.setdefault(key, problems.get(WHOLE, "missing in a frame"))
    if lists := sorted({key for each in frames for key in each.lists}):
        problems[lists[0]] = "a list, which cannot be pooled over frames"
    return Outcome(values, problems)


def _told(completion: Any) -> str:
    return "an empty list" if isinstance(completion, list | tuple) else f"a {type(completion).__name__}"
