"""Where it is: intersection over union of boxes `[x1, y1, x2, y2]`.

Models speak of boxes in different frames, so the frame is stated, never guessed from magnitudes:

    abs_original  pixels of the image as it is in the dataset
    abs_resized   pixels of the image as the model saw it (Qwen2.5-VL)
    rel_1000      thousandths of width and height (Qwen2-VL, Qwen3-VL, InternVL)
    rel_1024      1024ths of width and height (PaliGemma)
    rel_1         shares of width and height

IoU does not change when an axis is scaled, so boxes are compared as shares. Pixel frames need the columns
`image_size` and `resized_size`, `[width, height]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers
from mmrl.rewards.boxes import Box, boxes, says_none, true_boxes
from mmrl.rewards.registry import reward

WHOLE = {"rel_1000": 1000.0, "rel_1024": 1024.0, "rel_1": 1.0}  # what the whole width and height are written as
FRAMES = ("abs_original", "abs_resized", *WHOLE)
WALL = 8  # boxes that an answer may always hold; beyond, more than four for each true one are a wall, not an answer


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


def to_shares(box: Box, frame: str, sizes: Mapping[str, Sequence[float] | None]) -> Box:
    """A box of `frame` in shares of width and height."""
    check_frame("box_format", frame)
    if frame in WHOLE:
        width = height = WHOLE[frame]
    else:
        width, height = _size("image_size" if frame == "abs_original" else "resized_size", frame, sizes)
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def check_frame(option: str, frame: str | None) -> None:
    """RewardError for a frame that does not exist."""
    if frame is not None and frame not in FRAMES:
        raise RewardError(unknown(option, str(frame), FRAMES))


def _size(column: str, frame: str, sizes: Mapping[str, Sequence[float] | None]) -> tuple[float, float]:
    size = sizes.get(column)
    if size is None:
        raise RewardError(f"boxes in {frame!r} need the column {column!r}: [width, height] in pixels", column)
    numbers = isinstance(size, list | tuple) and all(isinstance(each, int | float) for each in size)
    if not numbers or len(size) != 2 or not all(math.isfinite(each) and each > 0 for each in size):
        raise RewardError(f"column {column!r} is {size!r}; expected [width, height] in pixels", column)
    return float(size[0]), float(size[1])


def check_boxes(
    row: Mapping[str, Any], *, box_format: str | None = None, truth_format: str | None = None, **_: Any
) -> None:
    """RewardError for a truth that holds no box, a frame that does not exist, or one whose image size is not there."""
    check_frame("box_format", box_format)
    check_frame("truth_format", truth_format)
    right = true_boxes(row.get("solution"))
    most = WHOLE.get(truth_format or "", math.inf)
    if any(not -0.02 * most <= each <= 1.02 * most for box in right for each in box if math.isfinite(most)):
        answers.refuse(row.get("solution"), f"lies outside the frame {truth_format!r}", f"numbers from 0 to {most:g}")
    if box_format and truth_format and box_format != truth_format:
        for frame in (box_format, truth_format):
            to_shares((0, 0, 1, 1), frame, row)


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
    Several boxes for a single true one are no answer, and neither is a wall of them. Where the truth is that there is
    nothing to find, 1 for an answer that says so, else 0.
    """
    right, answer = true_boxes(solution), answers.extract(completion)
    check_frame("box_format", box_format)
    check_frame("truth_format", truth_format)
    predicted = boxes(answer)
    if len(set(predicted)) > 1 and (said := answers.statements(answer)):
        predicted = boxes(said[-1][1])
    if not right:
        return float(not predicted and says_none(answer))
    if box_format and truth_format and box_format != truth_format:
        sizes = {"image_size": image_size, "resized_size": resized_size}
        right = [to_shares(box, truth_format, sizes) for box in right]
        predicted = [to_shares(box, box_format, sizes) for box in predicted]
    if every or len(right) != 1:
        value = matched_iou(predicted, right) if len(predicted) <= max(WALL, 4 * len(right)) else 0.0
    else:
        value = iou(predicted[0], right[0]) if len(set(predicted)) == 1 else 0.0
    return value if threshold is None else float(value > 0 and value >= threshold)


def _rows(completions, solution, image_size, resized_size, **options) -> list[float]:
    originals, resized = (sizes or [None] * len(completions) for sizes in (image_size, resized_size))
    return [
        where(c, s, image_size=o, resized_size=r, **options)
        for c, s, o, r in zip(completions, solution, originals, resized, strict=True)
    ]


@reward("box_iou", success=True, check=check_boxes)
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


@reward("boxes_iou", success=True, check=check_boxes)
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
