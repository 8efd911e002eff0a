"""Reading boxes by frame: `{"3": [x1, y1, x2, y2], ...}`, or a list of `{"frame" or "time": 3, "box": [...]}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.boxes import Box, boxes, from_value
from mmrl.rewards.intervals import Interval, interval
from mmrl.rewards.intervals import from_value as interval_from
from mmrl.rewards.languages import in_english
from mmrl.rewards.spelled import DASHES
from mmrl.rewards.tables import grid

WHERE = ("boxes", "tracks", "track", "trajectory", "bboxes", "frames", "tube", "tracking", "spatial",
         "bbox", "box")  # fmt: skip
WHEN = ("time", "temporal", "interval", "span", "segment")
STAMPS = ("frame", "frame_id", "frame_index", "time", "timestamp", "t", "second", "index")
MOST = 5000
_AROUND = " \n|:;,.>"
_KEY = re.compile(r"(?:frame|time|second|sec|t|f)?[\s_#:]*(\d+(?:\.\d+)?)\s*s?", re.IGNORECASE)
_CLOCK = re.compile(r"(?:(\d{1,2}):)?(\d{1,2}):(\d{2}(?:\.\d+)?)")

_LINE = re.compile(
    r"(?:frame|time|second|t|f)?[\s_#:]*(\d+(?:\.\d+)?)\s*s?\s*[:=]\s*[\[(]\s*(-?[\d.]+(?:\s*,\s*-?[\d.]+){3})\s*[\])](?!\s*(?:or|,)?\s*[\[(])",
    re.I,
)

_AT = re.compile(
    r"(?:\b(?:frame|time|second|timestamp|t|f)[\s_#:=]*|(?<!\w)#|^[\s|*-]*)(\d+(?:\.\d+)?)\s*s?(?:\s+-(?=\s))?"
    r"(?=\s*(?:[:=|>,\u2192]|-+>|\b(?:the|it|is|at)\b|[\[(])|\s+-?\d)",
    re.IGNORECASE | re.MULTILINE,
)
"""Where a frame is named: `Frame 3 -`, `| 3 |`, `at frame 3 the box is`."""

_BEFORE = re.compile(
    r"(?<![\w\"'.])(?:frame|time|second|t|f)?[\s_#:]*(\d+(?:\.\d+)?)\s*s?\s*[:=]\s*(?=\{)", re.IGNORECASE
)
"""`frame_3: ` before a JSON object."""
_CORNERS = ("x1", "y1", "x2", "y2")

Track = dict[float, Box]


def read(text: str) -> Any:
    """The JSON of an answer, or its lines `Frame 3: [x1, y1, x2, y2]` as a mapping, in any notation of boxes."""
    text = in_english(text)
    if (framed := _objects(text) or _rows(text)) is not None:
        return framed
    value = answers.merged(answers.json_value(text))
    if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value)):
        return value
    found = [(stamp, [float(each) for each in box.split(",")]) for stamp, box in _LINE.findall(text) if _numbers(box)]
    if not found:
        text = answers.bare(text).translate(DASHES)
        named = list(_AT.finditer(text))
        ends = [each.start() for each in named[1:]] + [len(text)] * bool(named)
        held = [(m[1], boxes(text[m.end() : end].strip(_AROUND))) for m, end in zip(named, ends, strict=True)]
        found = [(stamp, list(each[0])) for stamp, each in held if len(each) == 1]
    return dict(found) if found and len({stamp for stamp, _ in found}) == len(found) else value


def _objects(text: str) -> dict[str, Any] | None:
    """The JSON objects that stand each behind its frame; None where there is none, or a frame comes twice."""
    found: dict[str, Any] = {}
    for named in list(_BEFORE.finditer(text))[:MOST]:
        try:
            box, _ = json.JSONDecoder().raw_decode(text, named.end())
        except (ValueError, RecursionError):
            return None
        if named[1] in found:
            return {}
        found[named[1]] = box
    return found or None


def _rows(text: str) -> dict[str, Any] | None:
    """The rows of a table of five columns: the frame, and the box by the names in the head, corners without one."""
    rows = [row for row in grid(text) if len(row) == 5]
    numeric = [all(re.fullmatch(r"-?\d+(?:\.\d*)?", cell) for cell in row[1:]) for row in rows]
    headed = bool(rows) and not numeric[0]
    body = rows[1:] if headed else rows
    if not body or not all(numeric[headed:]) or len({row[0] for row in body}) < len(body):
        return None
    names = [cell.lower() for cell in rows[0][1:]] if headed else _CORNERS
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in body}


def tube(text: str) -> tuple[Interval | None, Track]:
    """(when, where) of an answer: of its JSON, or of its lines and the words beside them."""
    when, found = tube_in(read(text))
    if when is None and found:
        when = interval("\n".join(_words_of(line) for line in text.splitlines() if not boxes(_beside(_words_of(line)))))
    if when is None and not found:
        when = interval(text)
    return when, found


def _words_of(line: str) -> str:
    """What a line says before its JSON."""
    return line.partition("{")[0].rstrip(" ,:;").removesuffix("with boxes").removesuffix("boxes").rstrip(" ,:;")


def _beside(line: str) -> str:
    match = _AT.match(line)
    return line[match.end() :].strip(_AROUND) if match else line


def _numbers(box: str) -> bool:
    return all(re.fullmatch(r"-?\d+(?:\.\d*)?", each.strip()) for each in box.split(","))


def track_in(value: Any) -> Track:
    """The boxes by frame of a parsed value; a frame with several boxes, or twice, has none."""
    if isinstance(value, Mapping):
        named = {str(k).lower(): v for k, v in value.items()}
        inner = next((named[name] for name in WHERE if isinstance(named.get(name), Mapping | list)), None)
        pairs = [(key, each) for key, each in value.items()] if inner is None else None
        if pairs is None:
            return track_in(inner)
    elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        pairs = [(_stamp(each), each) for each in value]
    else:
        return {}
    found: dict[float, Box | None] = {}
    for key, each in pairs[:MOST]:
        frame = key_of(key)
        boxes = from_value(_without_stamp(each))
        if frame is not None:
            found[frame] = boxes[0] if len(boxes) == 1 and frame not in found else None
    return {frame: box for frame, box in found.items() if box is not None}


def key_of(key: Any) -> float | None:
    """`3`, `"3"`, `"frame_3"`, `"3.0s"` as 3.0."""
    if isinstance(key, int | float) and not isinstance(key, bool):
        return float(key)
    if key is not None and (clock := _CLOCK.fullmatch(str(key).strip())):
        return 3600 * float(clock[1] or 0) + 60 * float(clock[2]) + float(clock[3])
    match = _KEY.fullmatch(str(key).strip()) if key is not None else None
    return float(match[1]) if match else None


def _stamp(value: Mapping[str, Any]) -> Any:
    return next((value[name] for name in STAMPS if name in value), None)


def _without_stamp(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in STAMPS} if isinstance(value, Mapping) else value


def tube_in(value: Any) -> tuple[Interval | None, Track]:
    """(when, where) of a spatio-temporal answer."""
    if not isinstance(value, Mapping):
        return None, track_in(value)
    named = {str(k).lower(): v for k, v in value.items()}
    when = next((named[name] for name in WHEN if name in named), None)
    rest = {k: v for k, v in value.items() if str(k).lower() not in WHEN}
    return (interval_from(when) if when is not None else interval_from(value)), track_in(rest)


def true_track(solution: Any) -> Track:
    """RewardError for a truth without boxes by frame, or one whose boxes have no area."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    found = track_in(value)
    _check(solution, found, value)
    return found


def true_tube(solution: Any) -> tuple[Interval, Track]:
    """As `true_track`, with an interval of positive length."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    when, found = tube_in(value)
    if when is None or when[1] <= when[0]:
        answers.refuse(solution, "has no time interval", '{"time": [start, end], "boxes": {"3": [x1, y1, x2, y2]}}')
    _check(solution, found, value)
    return when, found


def _check(solution: Any, found: Track, value: Any) -> None:
    flat = [frame for frame, box in found.items() if box[2] <= box[0] or box[3] <= box[1]]
    lost = isinstance(value, list) and len(found) < len(value)
    if not found or flat or lost:
        answers.refuse(solution, "has no box for each frame", '{"0": [x1, y1, x2, y2], "1": [...]}, boxes with an area')
