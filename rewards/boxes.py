r"""Reading boxes `[x1, y1, x2, y2]` from what models print, and the statement that there is none.

    [10, 20, 30, 40]   (10, 20, 30, 40)   10, 20, 30, 40           {"bbox_2d": [10, 20, 30, 40], "label": "cat"}
    <|box_start|>(10,20),(30,40)<|box_end|>                        Qwen2-VL
    <box>[[10, 20, 30, 40]]</box>   <box>(10,20),(30,40)</box>     InternVL, Qwen-VL
    {"x1": 10, "y1": 20, "x2": 30, "y2": 40}   {"xmin": ...}   {"left": ...}   {"x", "y", "width", "height"}
    [[10, 20], [30, 40]]   [[010 020 030 040]]   {<10><20><30><40>}   x1=10, y1=20, x2=30, y2=40
    <loc0020><loc0010><loc0040><loc0030>   {"box_2d": [20, 10, 40, 30]}     PaliGemma, Gemini: y before x
    {"dog": [10, 20, 30, 40], "cat": [...]}

A point is no box, and neither are three or five numbers, NaN or text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from mmrl.rewards import answers, dressing

Box = tuple[float, float, float, float]
LONGEST = 20_000
KEYS = (
    "boxes", "bboxes", "bbox_2d", "bbox", "box", "box_2d", "objects", "detections", "bounding_boxes", "bounding_box",
    "coordinates", "answer", "predictions",
)  # fmt: skip
_CORNERS = (
    ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"), ("x0", "y0", "x1", "y1"),
)  # fmt: skip
_EXTENTS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_N = r"([-+]?\s?(?:\d+(?:\.\d*)?|\.\d+))"
_BOX = re.compile(rf"[\[(]\s*{_N}\s*[,;\s]\s*{_N}\s*[,;\s]\s*{_N}\s*[,;\s]\s*{_N}\s*,?\s*[\])]")
_AND = (
    r"\s*(?:,?\s*(?:to|and)|[,;-])?\s*"
    r"(?:(?:the\s+)?(?:bottom|lower)[ -]?right(?:\s+corner)?\s*(?:is|at|:|=)?\s*(?:at\s*)?)?"
)
_POINT = re.compile(rf"[(\[]\s*{_N}\s*,\s*{_N}\s*[)\]]")
_CORNER_PAIR = re.compile(rf"[(\[]\s*{_N}\s*,\s*{_N}\s*[)\]]{_AND}[(\[]\s*{_N}\s*,\s*{_N}\s*[)\]]", re.I)
_ANGLED = re.compile(rf"<{_N}>\s*<{_N}>\s*<{_N}>\s*<{_N}>")
_NAMED = re.compile(
    rf"x_?(?:1|min)\s*[:=]\s*{_N}[,;\s]+y_?(?:1|min)\s*[:=]\s*{_N}[,;\s]+x_?(?:2"
    rf"|max)\s*[:=]\s*{_N}[,;\s]+y_?(?:2|max)\s*[:=]\s*{_N}",
    re.I,
)
_SIDES = re.compile(
    rf"left\s*[:=]\s*{_N}[,;\s]+top\s*[:=]\s*{_N}[,;\s]+right\s*[:=]\s*{_N}[,;\s]+bottom\s*[:=]\s*{_N}", re.I
)
_BARE = re.compile(
    rf"\s*(?:(?:b?box|bbox_2d|coordinates)(?:\s*[:=])?\s*)?{_N}\s*,\s*{_N}\s*,\s*{_N}\s*,\s*{_N}\s*[.;]?\s*|"
    r"\s*" + r"\s+".join([r"(\d+(?:\.\d+)?)"] * 4) + r"\s*"
)
_LOCATED = re.compile(r"<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>")
_QUANTISED = re.compile(r"<loc_(\d{1,4})>\s*<loc_(\d{1,4})>\s*<loc_(\d{1,4})>\s*<loc_(\d{1,4})>")
"""Of Florence: x before y, where PaliGemma's `<loc0020>` has y first."""
_SPELT = re.compile(rf"<box>\s*{_N}[\s,]+{_N}[\s,]+{_N}[\s,]+{_N}\s*</box>", re.IGNORECASE)
_EXTENT = re.compile(
    rf"\bx\s*[:=]\s*{_N}[,;\s]+y\s*[:=]\s*{_N}[,;\s]+(?:width|w)\s*[:=]\s*{_N}[,;\s]+(?:height|h)\s*[:=]\s*{_N}", re.I
)
_POINTS = re.compile(r"<points?\b", re.IGNORECASE)  # of Molmo
_QUOTED_NUMBER = re.compile(r"([\"'])(\s*-?\d+(?:\.\d+)?\s*)\1")
_SPECIAL = re.compile(
    r"<\|?/?(?:box|bbox|box_start|box_end|bbox_start|bbox_end|object_ref_start|object_ref_end|ref"
    r"|quad_start|quad_end)\|?>"
)
_PLAIN = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013"), "-")
_PIXELS = re.compile(r"(?<=\d)\s?(?:px|pixels?)\b|^\s*[-*\u2022]\s+(?=[a-z])", re.IGNORECASE | re.MULTILINE)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\binstead of|\brather than)\b(?:(?!\bbut\b)[^.,;:\[(\n]){0,40}$",
    re.IGNORECASE,
)
_NO_DENIAL = r"(?! (?:idea|doubt|question|way|clue|answer|image|picture|one knows))"
_NOTHING = re.compile(
    r"(?:\[\s*(?:\[\s*\])?\s*\]|none|null|nothing|no (?:such )?(?:box(?:es)?|object(?:s)?"
    r"|match(?:es)?|target(?:s)?|detections?|bounding box(?:es)?)"
    rf"|(?:there (?:is|are) )?(?:none|no{_NO_DENIAL}|nothing(?! but))\b"
    r"(?:(?!\b(?:except|besides|apart|other than|save for)\b)[^.,;\d\[\]]){0,60}"
    r"|(?:(?:the|any|an?) )?(?:[a-z][\w-]* ){0,5}(?:(?:is|are|was|were|could|can)(?: not|n't)|cannot|not) (?:be )?"
    r"(?:found|present|visible|seen|detected|located|shown|there|in (?:the|this) (?:image|picture))"
    r"(?:(?!\b(?:but|except)\b)[^.,;\d\[\]]){0,40}"
    r"|(?:there (?:is|are)n't|(?:i|we) (?:do not|don't|cannot|can't|could not|couldn't) (?:see|find|detect|locate))"
    r" any\b"
    r"(?:(?!\b(?:except|besides|apart|other than|but)\b)[^.,;\d\[\]]){0,60})",
    re.IGNORECASE,
)


def boxes(text: str) -> list[Box]:
    """All boxes of a text, in order: those of its JSON, or of the first notation above that finds some."""
    if _POINTS.search(text):
        return []
    if (rest := answers.corrected(text)) != text and (found := boxes(rest)):
        return found
    text = _PIXELS.sub("", dressing.narrow(text[:LONGEST]).translate(_PLAIN))
    text = _SPELT.sub(r"[\1, \2, \3, \4]", text)
    text = _QUOTED_NUMBER.sub(r"\2", _SPECIAL.sub(" ", text))
    value = answers.json_value(text)
    flat = isinstance(value, list) and all(_is_number(each) for each in value)
    if value is not None and not flat:
        return from_value(value)
    if matches := list(_LOCATED.finditer(text)):
        return [_box([m[2], m[1], m[4], m[3]]) for m in matches]
    if matches := list(_EXTENT.finditer(text)):
        return [(x, y, x + w, y + h) for x, y, w, h in ([float(each) for each in m.groups()] for m in matches)]
    for notation in (_QUANTISED, _BOX, _CORNER_PAIR, _ANGLED, _NAMED, _SIDES):
        if matches := list(notation.finditer(text)):
            if notation is _CORNER_PAIR and len(_POINT.findall(text)) != 2 * len(matches):
                return []  # three corners, or a point beside a box
            said = [m for m in matches if not _NEGATED.search(text[max(m.start() - 60, 0) : m.start()])]
            return [_box([each.replace(" ", "") for each in match.groups()]) for match in said]
    whole = _BARE.fullmatch(text)
    return [_box([each.replace(" ", "") for each in whole.groups() if each])] if whole else []


def says_none(text: str) -> bool:
    """Whether a text states that there is nothing to find: `[]`, `{"boxes": []}`, "none", "there is no dog"."""
    text = answers.bare(text).strip()
    value = answers.json_value(text)
    if value is not None:
        return _is_empty(value)
    return bool(_NOTHING.fullmatch(answers.plain(text)))


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        named = [value[key] for key in KEYS if key in value]
        return bool(named) and all(_is_empty(each) for each in named)
    return value is None or (isinstance(value, list | tuple) and all(_is_empty(each) for each in value))


def from_value(value: Any) -> list[Box]:
    """The boxes of a parsed value, by its names or as lists of four."""
    if isinstance(value, dict):
        return _from_mapping({str(key).lower(): each for key, each in value.items()})
    if isinstance(value, str):
        return boxes(value)
    if not isinstance(value, list | tuple):
        return []
    if _is_flat(value):
        return [_box(value)]
    if len(value) == 2 and all(_is_point(each) for each in value):
        return [_box([*value[0], *value[1]])]
    return [box for each in value for box in from_value(each)]


def _from_mapping(value: dict[str, Any]) -> list[Box]:
    for names in _CORNERS:
        if all(_is_number(value.get(name)) for name in names):
            return [_box([value[name] for name in names])]
    for names in _EXTENTS:
        if all(_is_number(value.get(name)) for name in names):
            x, y, width, height = (float(value[name]) for name in names)
            return [(x, y, x + width, y + height)]
    if _is_flat(first := value.get("box_2d")):
        return [_box([first[i] for i in (1, 0, 3, 2)])]
    if named := [key for key in KEYS if key in value]:
        return from_value(value[named[0]])
    named_ones = [each if isinstance(each, list) and each and all(map(_is_flat, each)) else [each]
                  for each in value.values()]  # fmt: skip
    flat = bool(value) and all(_is_flat(box) for each in named_ones for box in each)
    return [_box(box) for each in named_ones for box in each] if flat else []  # by the names of what they hold


def _is_flat(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(_is_number(each) for each in value)


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(each) for each in value)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"\s*-?(?:\d+(?:\.\d*)?|\.\d+)\s*", value))
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _box(values: Sequence) -> Box:
    x1, y1, x2, y2 = (float(v) for v in values)
    return x1, y1, x2, y2


def true_boxes(solution: Any) -> list[Box]:
    """RewardError for a column without boxes, or with one without area. [] or "none": there is nothing to find."""
    structured = isinstance(solution, dict | list | tuple)
    if solution is None or solution == {}:
        answers.refuse(solution, "is no box", "[x1, y1, x2, y2], or [] where there is nothing to find")
    text = "" if structured else answers.truth(solution)
    found = from_value(solution) if structured else boxes(text)
    empty = not found and (_is_empty(solution) if structured else says_none(text))
    counted = _count(solution if structured else answers.json_value(text))
    flat = any(box[2] <= box[0] or box[3] <= box[1] for box in found)
    if flat or (not found and not empty) or (found and counted and counted != len(found)):
        answers.refuse(solution, "is no box", "[x1, y1, x2, y2] with x1 < x2 and y1 < y2, or a list of them")
    return found


def _count(value: Any) -> int:
    """How many boxes a list holds by its length, so that one that cannot be read is not passed over; 0: unknown."""
    if isinstance(value, dict):
        return next((_count(value[key]) for key in KEYS if key in value), 0)
    nested = isinstance(value, list | tuple) and any(isinstance(each, list | tuple | dict) for each in value)
    return len(value) if nested and not (len(value) == 2 and all(map(_is_point, value))) else 0
