"""Where it is: intersection over union of boxes `[x1, y1, x2, y2]`.

Models speak of boxes in different frames, so the frame is stated, never guessed from magnitudes:

    abs_original  pixels of the image as it is in the dataset
    abs_resized   pixels of the image as the model saw it (Qwen2.5-VL)
    rel_1000      thousandths of width and height (Qwen2-VL, Qwen3-VL, InternVL)
    rel_1         shares of width and height

IoU does not change when an axis is scaled, so boxes are compared as shares. Pixel frames need the columns
`image_size` and `resized_size`, `[width, height]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers
from mmrl.rewards.registry import reward

FRAMES = ("abs_original", "abs_resized", "rel_1000", "rel_1")
KEYS = ("boxes", "bboxes", "bbox_2d", "bbox", "box")
_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]")

Box = tuple[float, float, float, float]


def boxes(text: str) -> list[Box]:
    """All boxes of a text: those of its JSON, where it has more than a bare box, or each `[x1, y1, x2, y2]`."""
    value = answers.json_value(text)
    bare = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
    found = [] if bare else _from_json(value)
    return found or [_box(match) for match in _BOX.findall(text)]


def _from_json(value: Any) -> list[Box]:
    if isinstance(value, dict):
        return next((_from_json(value[key]) for key in KEYS if key in value), [])
    if not isinstance(value, list | tuple):
        return []
    if len(value) == 4 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        return [_box(value)]
    return [box for each in value for box in _from_json(each)]


def _box(values: Sequence) -> Box:
    x1, y1, x2, y2 = (float(v) for v in values)
    return x1, y1, x2, y2


def iou(a: Box, b: Box) -> float:
    """Plain intersection over union; 0 for a box without area."""
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b)]
    if not all(areas) or any(box[2] <= box[0] or box[3] <= box[1] for box in (a, b)):
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (sum(areas) - shared)


def matched_iou(predicted: Sequence[Box], right: Sequence[Box]) -> float:
    """IoUs of the best one-to-one matching, summed, over the larger count: missing and extra boxes both cost.

    Both empty: 1; one empty: 0.
    """
    if not predicted or not right:
        return float(not predicted and not right)
    from scipy.optimize import linear_sum_assignment

    table = [[iou(p, r) for r in right] for p in predicted]
    rows, columns = linear_sum_assignment(table, maximize=True)
    return sum(table[i][j] for i, j in zip(rows, columns, strict=True)) / max(len(predicted), len(right))


def to_shares(box: Box, frame: str, sizes: dict[str, Sequence[float] | None]) -> Box:
    """A box of `frame` in shares of width and height."""
    if frame not in FRAMES:
        raise RewardError(unknown("box_format", frame, FRAMES))
    if frame == "rel_1":
        return box
    if frame == "rel_1000":
        width = height = 1000.0
    else:
        column = "image_size" if frame == "abs_original" else "resized_size"
        size = sizes.get(column)
        if size is None:
            raise RewardError(f"boxes in {frame!r} need the column {column!r}: [width, height] in pixels")
        width, height = size
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def true_boxes(solution: Any) -> list[Box]:
    """RewardError when the column holds no boxes, or one without area. An empty list means "there is none"."""
    found = _from_json(solution) if isinstance(solution, dict | list | tuple) else boxes(answers.truth(solution))
    empty = solution in ([], "[]", {"boxes": []})
    if (not found and not empty) or any(box[2] <= box[0] or box[3] <= box[1] for box in found):
        raise RewardError(f"solution {solution!r} is no box; expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    return found


def where(
    completion: str,
    solution: Any,
    *,
    box_format: str | None = None,
    truth_format: str | None = None,
    image_size: Sequence[float] | None = None,
    resized_size: Sequence[float] | None = None,
    every: bool = False,
    threshold: float | None = None,
) -> float:
    """IoU of the predicted and the true box; with several true boxes (or `every`), `matched_iou`.

    box_format    the frame the model answers in; None: the frame of the truth, and nothing is converted
    truth_format  the frame of the `solution` column; None: that of the answers
    threshold     1 if the IoU reaches it, else 0, instead of the IoU
    For a single true box the first box of the answer counts: more guesses gain nothing.
    """
    right, predicted = true_boxes(solution), boxes(answers.extract(completion))
    if box_format and truth_format and box_format != truth_format:
        sizes = {"image_size": image_size, "resized_size": resized_size}
        right = [to_shares(box, truth_format, sizes) for box in right]
        predicted = [to_shares(box, box_format, sizes) for box in predicted]
    if every or len(right) != 1:
        value = matched_iou(predicted, right)
    else:
        value = iou(predicted[0], right[0]) if predicted else 0.0
    return value if threshold is None else float(value >= threshold)


def _rows(completions, solution, image_size, resized_size, **options) -> list[float]:
    originals, resized = (sizes or [None] * len(completions) for sizes in (image_size, resized_size))
    return [
        where(c, s, image_size=o, resized_size=r, **options)
        for c, s, o, r in zip(completions, solution, originals, resized, strict=True)
    ]


@reward("box_iou", success=True)
def box_iou(
    completions,
    solution,
    image_size=None,
    resized_size=None,
    *,
    box_format: str | None = None,
    truth_format: str | None = None,
    threshold: float | None = None,
) -> list[float]:
    """IoU of the answered and the true box, or 1 and 0 around `threshold` (.5 is usual)."""
    options = {"box_format": box_format, "truth_format": truth_format, "threshold": threshold}
    return _rows(completions, solution, image_size, resized_size, **options)


@reward("boxes_iou", success=True)
def boxes_iou(
    completions,
    solution,
    image_size=None,
    resized_size=None,
    *,
    box_format: str | None = None,
    truth_format: str | None = None,
) -> list[float]:
    """IoU of the best one-to-one matching of boxes, summed, over the larger of the two counts."""
    options = {"box_format": box_format, "truth_format": truth_format, "every": True}
    return _rows(completions, solution, image_size, resized_size, **options)
