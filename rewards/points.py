r"""Reading points `(x, y)` from what models print: the one parser of every kind that reads points.

    (10, 20)   [10, 20]   10, 20   x=10, y=20            {"point_2d": [10, 20], "label": "cat"}   {"x": 10, "y": 20}
    <point>10 20</point>   <point>[[10, 20]]</point>     <point x="10" y="20" alt="cat">cat</point>
    <points x1="10" y1="20" x2="30" y2="40">             <|point_start|>(10,20)<|point_end|>
    [[10, 20], [30, 40]]                                 a box counts as its centre where `centres` is set

Four numbers side by side are a box and no point; a number alone and three of them are nothing.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.boxes import boxes, from_value
from mmrl.rewards.tables import grid

Point = tuple[float, float]
LONGEST = 20_000
KEYS = (
    "points", "point_2d", "point", "points_2d", "coordinate", "coordinates", "keypoints", "clicks", "position",
    "arguments", "center", "location", "start_box", "start_point", "answer", "objects", "predictions",
)  # fmt: skip
_N = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)%?"
_PAIR = re.compile(rf"[(\[<]\s*({_N})\s*[,;\s]\s*({_N})\s*,?\s*[)\]>]")
_NAMED = re.compile(rf"\bx(\d*)\s*[=:]\s*[\"']?({_N})[\"']?[,;\s]+y\1\s*[=:]\s*[\"']?({_N})", re.IGNORECASE)
_BARE = re.compile(
    rf"\s*(?:(?:the )?(?:[a-z]+ )?(?:coordinates?|point|position|location|answer)\s*(?:is|are|[:=])\s*)?"
    rf"({_N})\s*[,;\s]\s*({_N})\s*[.;]?\s*",
    re.IGNORECASE,
)
_ROW = re.compile(rf"\s*{_N}\s*[,\s]\s*{_N}(?:\s*[;\n]\s*{_N}\s*[,\s]\s*{_N})+\s*[;.]?\s*")
"""`10, 20; 30, 40`, or a pair on each line."""
_JOINED = re.compile(rf"\s*{_N},{_N}(?:\s+{_N},{_N})+\s*[;.]?\s*")
"""`10,20 30,40`"""
_QUANTISED = re.compile(r"<loc_(\d{1,4})>\s*<loc_(\d{1,4})>")
_MULTIPOINT = re.compile(r"\s*MULTIPOINT\s*\(([^()]*)\)\s*", re.IGNORECASE)
_TAGGED = re.compile(
    rf"<\|?points?(?:_start)?\|?>\s*({_N})\s*[,;\s]\s*({_N})\s*<\|?(?:/points?|point_end)\|?>", re.IGNORECASE
)
_TAG = re.compile(r"<\|?/?(?:points?|point_start|point_end|click|coordinate)\|?>|<points?\s", re.IGNORECASE)
_FOUR = re.compile(rf"[(\[]\s*{_N}(?:\s*[,;\s]\s*{_N}){{2,}}\s*,?\s*[)\]]")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\uff0d"), "-")
_NEGATED = re.compile(r"(?:\bnot|n't|\bnever)\b(?:(?!\bbut\b)[^.,;:\[(\n]){0,40}$", re.IGNORECASE)


def points(text: str, *, centres: bool = False) -> list[Point]:
    """All points of a text, in order: those of its JSON, or of the first notation above that finds some."""
    if (rest := answers.corrected(text)) != text and (better := points(rest, centres=centres)):
        return better
    if quantised := _QUANTISED.findall(text[:LONGEST]):
        return [_point(x, y) for x, y in quantised]
    text = _TAGGED.sub(r"(\1, \2) ", answers.bare(dressing.narrow(text[:LONGEST])).translate(_DASHES))
    text = _TAG.sub(" ", text)
    if written := _MULTIPOINT.fullmatch(text):
        text = written[1].replace(",", ";")
    value = answers.json_value(text)
    if value is not None and not (isinstance(value, list) and all(_is_number(each) for each in value)):
        return points_in(value, centres=centres)
    if headed := _headed(text):
        return headed
    if named := _NAMED.findall(text):
        return [_point(x, y) for _, x, y in named]
    if _FOUR.search(text):
        return [_centre(box) for box in boxes(text)] if centres else []
    found = [m for m in _PAIR.finditer(text) if not _NEGATED.search(text[max(m.start() - 60, 0) : m.start()])]
    if found:
        return [_point(m[1], m[2]) for m in found]
    if _ROW.fullmatch(text) or _JOINED.fullmatch(text):
        numbers = re.findall(_N, text)
        return [_point(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    whole = _BARE.fullmatch(text)
    return [_point(whole[1], whole[2])] if whole else []


def _headed(text: str) -> list[Point]:
    """The points of a table with columns `x` and `y`."""
    rows = grid(text) if text.count("|") > 3 else []
    head = [cell.lower() for cell in rows[0]] if rows else []
    if "x" not in head or "y" not in head:
        return []
    x, y = head.index("x"), head.index("y")
    cells = [(_numeral(row[x]), _numeral(row[y])) for row in rows[1:]]
    return [(a, b) for a, b in cells if a is not None and b is not None]


def points_in(value: Any, *, centres: bool = False) -> list[Point]:
    """The points of a parsed value, by its names or as pairs."""
    if isinstance(value, str):
        return points(value, centres=centres)
    if isinstance(value, dict):
        named = {str(key).lower(): each for key, each in value.items()}
        x, y = (_numeral(named.get(name)) for name in "xy")
        if x is not None and y is not None:
            return [(x, y)]
        for key in KEYS:
            if key in named:
                return points_in(named[key], centres=centres)
        if named and all(re.fullmatch(r"(?:point|p|click)[ _]?\d+", key) for key in named):
            return [point for each in value.values() for point in points_in(each, centres=centres)]
        pairs = [each for each in value.values() if isinstance(each, list | tuple) and len(each) == 2]
        if value and len(pairs) == len(value) and all(_is_number(n) for pair in pairs for n in pair):
            return [(float(x), float(y)) for x, y in pairs]  # by the names of what they show
        return [_centre(box) for box in from_value(value)] if centres else []
    if not isinstance(value, list | tuple):
        return []
    if len(value) == 2 and all(_is_number(each) for each in value):
        return [(float(value[0]), float(value[1]))]
    if all(_is_number(each) for each in value):
        return [_centre(box) for box in from_value(value)] if centres else []
    return [point for each in value for point in points_in(each, centres=centres)]


def the_point(text: str, *, centres: bool = True) -> Point | None:
    """The one point of an answer; None for none, and for several that differ unless one is "the answer"."""
    found = list(dict.fromkeys(points(text, centres=centres)))
    if len(found) > 1 and (said := answers.statements(text)):
        found = list(dict.fromkeys(points(said[-1][1], centres=centres)))
    return found[0] if len(found) == 1 else None


def true_points(solution: Any) -> list[Point]:
    """The points of a truth; RewardError for none, or for a list in which an entry is no point."""
    structured = isinstance(solution, dict | list | tuple)
    found = points_in(solution) if structured else points(answers.truth(solution))
    listed = isinstance(solution, list | tuple) and not all(_is_number(each) for each in solution)
    if not found or (listed and len(found) < len(solution)):
        answers.refuse(solution, "is no point", "[x, y], or a list of them")
    return found


def distance(a: Point, b: Point) -> float:
    return math.hypot(a[0] - b[0], a[1] - b[1])


def inside(point: Point, outline: list[Point]) -> bool:
    """Whether a point lies in a polygon, by counting crossings; its edge belongs to it on one side."""
    x, y = point
    crossings = 0
    for (x1, y1), (x2, y2) in zip(outline, outline[1:] + outline[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            crossings += 1
    return crossings % 2 == 1


def _point(x: str, y: str) -> Point:
    return float(x.rstrip("%")), float(y.rstrip("%"))


def _centre(box: tuple[float, float, float, float]) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _numeral(value: Any) -> float | None:
    """Of 5 and of `"5"`; None for what is no number."""
    if isinstance(value, str) and re.fullmatch(rf"\s*{_N}\s*", value):
        return float(value.strip().rstrip("%"))
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
