r"""Reading one time interval, in seconds, from text or JSON.

    interval("from 2 to 8.5 seconds")    (2, 8.5)          interval("01:10 - 01:20.5")             (70, 80.5)
    interval("2 to 3 minutes")           (120, 180)        interval("1m30s until 2m")              (90, 120)
    interval('{"start": "0:02", "end": "8 s"}')  (2, 8)    interval('{"relevant_windows": [[2, 8]]}')  (2, 8)

Times are finite and not negative. Frames are no times. Several intervals are none, unless one is "the answer". An
interval may end before it starts: it is read, and overlaps nothing.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.languages import in_english
from mmrl.rewards.spelled import tidy

Interval = tuple[float, float]
LONGEST = 1500  # characters in which one interval is looked for; of a longer text only its statements are read
MOST_READ = 50_000
_STARTS = (
    "start_time",
    "start",
    "begin",
    "from",
    "start_sec",
    "start_seconds",
    "start_s",
    "begin_time",
    "t_start",
    "t1",
)
_ENDS = ("end_time", "end", "end", "to", "end_sec", "end_seconds", "end_s", "end_time", "t_end", "t2")
_WHOLE = (
    "time", "times", "timestamp", "timestamps", "interval", "intervals", "segment", "segments", "span", "window",
    "windows", "relevant_windows", "time_interval", "time_range", "temporal_grounding", "answer", "range", "event",
)  # fmt: skip
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_HOURS, _MINUTES = r"(?:h|hrs?|hours?)", r"(?:m|mins?|minutes?)"
_SECONDS, _MILLIS = r"(?:s|secs?|seconds?)", r"(?:ms|msecs?|milliseconds?)"
_DIGITS = r"\d+(?:[.,]\d+)?"
_CLOCK = r"(?:(?P<h{0}>\d+):)?(?P<m{0}>\d+):(?P<s{0}>\d{{2}}(?:[.,]\d+)?)"
_PARTS = (
    rf"(?=\d)(?:(?P<H{{0}}>{_DIGITS})[ -]?{_HOURS}(?![a-z])\s*(?:and )?)?(?:(?P<M{{0}}>{_DIGITS})[ "
    rf"-]?{_MINUTES}(?![a-z])\s*(?:and )?)?"
    rf"(?:(?P<S{{0}}>{_DIGITS})(?:[ -]?{_SECONDS}(?![a-z])|[ -]?(?P<ms{{0}}>{_MILLIS})(?![a-z])|(?![\d.:]))?)?"
)
_STAMP = rf"(?P<t{{0}}>(?P<sign{{0}}>-\s?)?(?:{_CLOCK}(?:\s*{_SECONDS}(?![a-z]))?|{_PARTS}))"
_BETWEEN = (
    r"\s*,?\s*(?:to|(?:and )?(?:it )?(?:lasts|continues|goes on|runs) (?:to|until|till)"
    r"|and|until|till|through|-+>?|~|\u2192|ends?(?:ing)? at|(?:and )?(?:it )?ends? at|and "
    r"ends at|,|;)\s*(?:at |second |t ?= ?)?"
)
_RANGE = re.compile(
    r"(?<![\w.:-])(?<!\d - )(?!(?<=\d )-)" + _STAMP.replace("{0}", "1").replace("{{", "{").replace("}}", "}")
    + _BETWEEN
    + _STAMP.replace("{0}", "2").replace("{{", "{").replace("}}", "}") + r"(?![\d:]|[.,-]\d|\s+-\s+\d)",
    re.IGNORECASE,
)  # fmt: skip
_ONE = re.compile(r"\s*" + _STAMP.replace("{0}", "1").replace("{{", "{").replace("}}", "}") + r"\s*", re.IGNORECASE)
_NAMED = re.compile(
    r"\b(?:start|begin)\w*(?:[ _]time)?\s*(?:is|at|:|=)?\s*(?:at "
    r")?(?P<start>[-\d:.,]+\s*[a-z]*)[,;.]?\s*(?:and )?(?:it )?"
    r"\b(?:end|finish|stop)\w*(?:[ _]time)?\s*(?:is|at|:|=)?\s*(?:at )?(?P<end>[-\d:.,]*\d\s*[a-z]*)",
    re.IGNORECASE,
)
_UNIT_AFTER = re.compile(rf"\]\s*({_HOURS}|{_MINUTES})\b", re.IGNORECASE)
_NO_TIME = re.compile(r"\bframes?\b|\bnot\b|n't\b|%", re.IGNORECASE)


def interval(text: str) -> Interval | None:
    """The one interval of a text; None if there is none, or several that differ."""
    text = in_english(answers.without_questions(text)[-MOST_READ:])
    value = answers.merged(answers.json_value(text))
    if value is not None and (found := from_value(value)):
        unit = _UNIT_AFTER.search(text)
        scale = _UNIT_SECONDS[unit[1][0].lower()] if unit and _is_bare_pair(value) else 1.0
        return found[0] * scale, found[1] * scale
    if value is not None:
        return None
    if (rest := answers.corrected(text, most_words=8)) != text and (found := _from_words(rest)):
        return found
    found = _from_words(text) if len(text) <= LONGEST else None
    if found is None and (said := answers.statements(answers.bare(text))):
        read = [(place, each) for place, rest in said if (each := _from_words(rest))]
        found = answers.settled(read, text) if len(read) == len(said) else None
    return found


def _is_bare_pair(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, int | float) for each in value)


def from_value(value: Any) -> Interval | None:
    """An interval in a parsed value: a mapping by its names, a pair, or the only item of a list."""
    if isinstance(value, dict):
        lowered = {str(key).strip().lower().replace(" ", "_"): each for key, each in value.items()}
        for first, last in zip(_STARTS, _ENDS, strict=True):
            if first in lowered and last in lowered:
                return _pair([lowered[first], lowered[last]])
        inner = [found for key in _WHOLE if key in lowered and (found := from_value(lowered[key]))]
        return inner[0] if len(inner) == 1 else None
    if isinstance(value, str):
        return interval(value)
    if isinstance(value, list | tuple) and len(value) == 1:
        return from_value(value[0]) if not isinstance(value[0], int | float) else None
    return _pair(value)


def _pair(value: Any) -> Interval | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    stamps = [_stamp(each) for each in value]
    if None in stamps:
        return None
    start, end = stamps
    return _shared_unit(start, end)


def _stamp(value: Any) -> tuple[float, float | None] | None:
    """(number, seconds of its unit or None where it names none) of one end; None for what is no time."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return (float(value), None) if math.isfinite(value) and value >= 0 else None
    match = _ONE.fullmatch(_line(value)) if isinstance(value, str) else None
    return _read(match, "1") if match else None


_WORDED = (  # what is said of times in other words, and what dresses them
    (re.compile(r"</?(?:time|timestamp|start|end)(?:_\w+)?>", re.I), " "),
    (re.compile(r">\s*<"), ">, <"),
    (re.compile(r"(?<=\d)(?:st|nd|rd|th) seconds?\b", re.I), "s"),
    (re.compile(r"\bthe (?=\d)", re.I), ""),
    (re.compile(r"\b(?:about|approximately|roughly|around|approx\.?) (?=\d)", re.I), ""),
    (re.compile(r"(?<!\d)(\d+)\s?['\u2032]\s?(\d{1,2}(?:\.\d+)?)\s?(?:[\"\u2033]|'')"), r"\1m\2s"),
    (re.compile(r"\bhalf an? (?=hour|minute|second)", re.I), "0.5 "),
    (re.compile(r"\b(?:one|an?) (?=hour|minute|second)", re.I), "1 "),
    (re.compile(r"\b(?:in|into|of) the (?:video|clip)\b|第|从|開始|开始", re.I), " "),
    (re.compile(r"(?<=\d)\s*(?:分钟|分鐘|分)"), "m "),
    (re.compile(r"(?<=\d)\s*秒[钟鐘]?"), "s "),
    (re.compile(r"(?<=\d)\s*(?:小时|小時)"), "h "),
    (re.compile(r"到|至|から|부터|에서"), " to "),
    (re.compile(r"まで|까지"), " "),
    (re.compile(r"(?<=\d)\s*초"), "s "),
    (re.compile(r"\bnot\b(?: from| between)?[^,.;\n]{0,40}?(?:,|\bbut\b)", re.I), " "),
    (re.compile(r",?\s+(?:not|rather than|instead of)\s+(?:from |between |at )?(?=\d)[^,;\n]*$", re.I), " "),
)


def _line(text: str) -> str:
    """Dashes as `-`, number words as digits, on one line; marks and brackets that dress a time taken off."""
    for said, plainly in _WORDED:
        text = said.sub(plainly, text)
    return " ".join(re.sub(r"[\[\]()<>\"'*]", " ", tidy(text)).split())


def _from_words(text: str) -> Interval | None:
    text = _line(text)
    if _NO_TIME.search(text):
        return None
    found = set()
    for match in _RANGE.finditer(text):
        start, end = _read(match, "1"), _read(match, "2")
        found.add(_shared_unit(start, end) if start and end else None)
    if not found:
        for match in _NAMED.finditer(text):
            found.add(_pair([match["start"].strip(" ,."), match["end"].strip(" ,.")]))
    return found.pop() if len(found) == 1 else None


def _read(match: re.Match, n: str) -> tuple[float, float | None] | None:
    if match[f"sign{n}"] and not re.search(r"\d\s*$", match.string[: match.start(f"t{n}")]):
        return None
    part = {name: _number(match[name + n]) for name in ("h", "m", "s", "H", "M", "S")}
    if part["m"] is not None:
        if part["s"] >= 60 or (part["h"] is not None and part["m"] >= 60):
            return None
        return 3600 * (part["h"] or 0) + 60 * part["m"] + part["s"], 1.0
    units = [part[name] for name in ("H", "M", "S")]
    if units == [None] * 3:
        return None
    if match[f"ms{n}"]:
        return units[2] / 1000, 1.0
    named = re.search(rf"{_SECONDS}$", match[f"t{n}"].strip(), re.IGNORECASE)
    if units[0] is None and units[1] is None and not named:
        return units[2], None
    if units[2] is None and (units[0] is None or units[1] is None):  # one unit alone may serve both ends
        unit = 3600.0 if units[1] is None else 60.0
        return (units[0] if units[1] is None else units[1]) * unit, unit
    return 3600 * (units[0] or 0) + 60 * (units[1] or 0) + (units[2] or 0), 1.0


def _number(digits: str | None) -> float | None:
    return None if digits is None else float(digits.replace(",", "."))


def _shared_unit(start: tuple[float, float | None], end: tuple[float, float | None]) -> Interval:
    """A start without a unit has that of the end: "2 to 3 minutes". Without any, seconds."""
    scale = end[1] if start[1] is None and end[1] is not None else 1.0
    return start[0] * scale, end[0]
