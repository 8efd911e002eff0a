"""Outlines: intersection over union of polygons, drawn on a grid over both."""

from __future__ import annotations

from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.points import Point, points, true_points
from mmrl.rewards.tasks import UNREAD, Verdict, kind

GRID = 512  # cells along the longer side; the IoU is right to about one in a hundred
MOST_CORNERS = 1000


def true_outline(solution: Any) -> list[Point]:
    """RewardError for fewer than three corners, or for an outline without area."""
    found = true_points(solution)
    if len(found) < 3 or not area(found):
        answers.refuse(solution, "is no outline", "[[x, y], ...], three corners or more around an area")
    return found


def area(outline: list[Point]) -> float:
    """By the shoelace formula."""
    pairs = zip(outline, outline[1:] + outline[:1], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def outline_iou(first: list[Point], second: list[Point]) -> float:
    """Intersection over union of two polygons."""
    import numpy as np
    from PIL import Image, ImageDraw

    corners = np.array(first + second, dtype=np.float64)
    low, high = corners.min(0), corners.max(0)
    scale = GRID / max((high - low).max(), 1e-12)

    def drawn(outline: list[Point]) -> np.ndarray:
        canvas = Image.new("1", (GRID + 1, GRID + 1))
        ImageDraw.Draw(canvas).polygon([tuple((np.array(p) - low) * scale) for p in outline], fill=1)
        return np.asarray(canvas)

    a, b = drawn(first), drawn(second)
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 0.0


@kind(
    "polygon",
    read=true_outline,
    valid=lambda text: len(points(text)) >= 3,
    answer="the corners in order, as for `points`: `[[x, y], [x, y], [x, y], ...]`",
    truth="the same; three corners or more",
    aliases=("outline", "mask_polygon", "segmentation_polygon"),
)
def polygon(answer: str, right: list[Point]) -> Verdict:
    """IoU of the answered and the true polygon."""
    found = points(answer)
    if not 3 <= len(found) <= MOST_CORNERS or not area(found):
        return UNREAD
    return Verdict(outline_iou(found, right))
