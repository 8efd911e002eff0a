"""Outlines: intersection over union of polygons, drawn on a grid over both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.denials import denied
from mmrl.rewards.points import Point, points, points_in, true_points
from mmrl.rewards.tasks import UNREAD, Verdict, kind

GRID = 512  # cells along the longer side; the IoU is right to about one in a hundred
MOST_CORNERS = 1000
NAMES = ("polygon", "outline", "segmentation", "mask", "polygons", "corners", "vertices", "contour", "points")
_N = r"-?\d+(?:\.\d+)?"
_ATTRIBUTE = re.compile(r"\bpoints\s*=\s*[\"']([^\"']*)[\"']", re.IGNORECASE)
_PATH = re.compile(rf"\s*M(?:\s*[ML]?\s*{_N}[\s,]+{_N})+\s*Z?\s*", re.IGNORECASE)
_ROW = re.compile(rf"\s*{_N}(?:[\s,;]+{_N}){{5,}}[\s.;]*")
_WKT = re.compile(r"\s*(?:(?:MULTI)?POLYGON|LINEARRING|LINESTRING)\s*\({1,3}([^()]*)\){1,3}\s*", re.IGNORECASE)
_NUMBER = re.compile(_N)


def outline(text: str) -> list[Point]:
    """The corners of a text: as `points`, in a row `[x1, y1, x2, y2, ...]` as COCO has them, as SVG or WKT."""
    if denied(text):
        return []
    text = re.sub(r"</?[a-z]+>", " ", dressing.narrow(answers.bare(text)), flags=re.IGNORECASE).strip().strip("\"'")
    if attribute := _ATTRIBUTE.search(text):
        text = attribute[1]
    if written := _WKT.fullmatch(text):
        text = written[1]
    if _ROW.fullmatch(text) or _PATH.fullmatch(text):
        return _paired([float(each) for each in _NUMBER.findall(text)])
    value = answers.json_value(text)
    return points(text) if value is None else outline_in(value)


def outline_in(value: Any) -> list[Point]:
    """The corners of a parsed value; the first corner said again at the end counts once."""
    if isinstance(value, Mapping):
        named = {str(key).lower(): each for key, each in value.items()}
        inner = next((named[name] for name in NAMES if name in named), None)
        return points_in(value) if inner is None else outline(inner) if isinstance(inner, str) else outline_in(inner)
    if isinstance(value, list | tuple):
        if len(value) == 1:
            return outline_in(value[0])
        if len(value) >= 6 and all(isinstance(each, int | float) for each in value):
            return _paired(value)
    return _opened(points_in(value))


def _paired(numbers: Any) -> list[Point]:
    return _opened(list(zip(numbers[::2], numbers[1::2], strict=True))) if len(numbers) % 2 == 0 else []


def _opened(found: list[Point]) -> list[Point]:
    return found[:-1] if len(found) > 3 and found[0] == found[-1] else found


def true_outline(solution: Any) -> list[Point]:
    """RewardError for fewer than three corners, or for an outline without area."""
    structured = isinstance(solution, dict | list | tuple)
    found = outline_in(solution) if structured else outline(answers.truth(solution))
    if isinstance(solution, list | tuple) and len(solution) > 1 and not isinstance(solution[0], int | float):
        true_points(solution)  # an entry that is no point is refused
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
    valid=lambda text: len(outline(text)) >= 3,
    answer="the corners in order, as for `points`: `[[x, y], [x, y], [x, y], ...]`; also `[x1, y1, x2, y2, ...]`, "
    '`{"polygon": [...]}`, SVG, and WKT',
    truth="the same; three corners or more",
    aliases=("outline", "mask_polygon", "segmentation_polygon"),
)
def polygon(answer: str, right: list[Point]) -> Verdict:
    """IoU of the answered and the true polygon."""
    found = outline(answer)
    if not 3 <= len(found) <= MOST_CORNERS or not area(found):
        return UNREAD
    return Verdict(outline_iou(found, right))
