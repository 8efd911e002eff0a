"""Video anomaly: is there one, of which kind, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.booleans import boolean
from mmrl.rewards.intervals import Interval, interval
from mmrl.rewards.intervals import from_value as interval_from
from mmrl.rewards.kinds.prose import stem
from mmrl.rewards.languages import in_english
from mmrl.rewards.tasks import UNREAD, Verdict, kind
from mmrl.rewards.temporal import overlap

KINDS = ("label", "class", "category", "type", "anomaly_type", "anomaly", "event", "which", "what")
TIMES = ("time", "interval", "span", "segment", "timestamp", "timestamps", "when")
_NORMAL = re.compile(
    r"(?:normal|none|no anomal(?:y|ies)|no|false|nothing (?:unusual|abnormal|anomalous)|n/a|null)", re.I
)
_SAID_NORMAL = re.compile(
    r"(?:no,? )?(?:(?:the |this )?(?:video|clip|scene|footage)|everything|all)? ?(?:is |looks |seems |appears )?"
    r"(?:completely |entirely |perfectly )?normal[^.,;\d]{0,30}|"
    r"(?:no,? )?(?:there (?:is|are) |(?:the |this )?(?:video|clip|scene|footage) (?:shows|contains|has) )?"
    r"no (?:anomal(?:y|ies)|(?:abnormal|unusual|anomalous|suspicious) "
    r"(?:events?|activit(?:y|ies)|behaviou?rs?))(?:(?!\b(?:but|except)\b)[^.,;]){0,40}|"
    r"(?:no,? )?(?:there is )?nothing (?:unusual|abnormal|anomalous|out of the ordinary)[^.,;\d]{0,40}", re.I
)  # fmt: skip
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
_YES = re.compile(r"^(?:yes|[-*\u2022])[,.:;]?\s+(?:there is )?(?=\w)")
_WHO = re.compile(
    r"^(?:(?:an?|the|one|two|three|four|some|several|many|\d+|group of) ){0,3}"
    r"(?:m[ae]n|wom[ae]n|people|persons?|guys?|boys?|individuals?) (?:(?:is|are|was|were|starts?) )?(?=\w)"
)
"""`two men fight`, of fighting."""
_NAME = r"[a-z][a-z _-]{1,40}"
_TOLD = re.compile(
    rf"\b(?:anomaly(?: type| detected)?|abnormal|anomalous|type|category|label|event)\s*[:=]\s*({_NAME})(?=[.,;\n]|$)"
    r"|\b(?:anomaly(?: type| kind| category)?|(?:abnormal|anomalous) (?:event|activity|behaviou?r))"
    r"(?: (?:is|was)|\s*\()\s*(?:an? |the )?"
    rf"(?!(?:visible|seen|shown|located|present|detected|found|that|not|at|from|between|in)\b)({_NAME}?)"
    r"(?=[.,;)\n]|$| \(| (?:and|from|between|at|which|that|during|lasting|occurr?ing)\b)"
)
_NAMED = re.compile(
    rf"(?:there is |(?:the |this )?(?:video|clip|scene|footage) (?:shows|contains|depicts|has) |an? |the )*"
    rf"((?!(?:from|between|at|in|during)\b){_NAME}?)"
    r"(?: (?:takes? place|occurs?|happens?|breaks? out|starts?|is (?:seen|shown|visible)))?"
    r"\s*(?:[,;:(\[]|\bfrom\b|\bbetween\b|\bat\b|\bduring\b|(?=\d))"
)
"""`fighting, 2 to 8 s`, `a fight takes place between 2 and 8 s`, `fighting [2, 8]`."""

_BESIDE = re.compile(
    r"(?:from|between|at|in|on|near|by|with|during|lasting|starting|starts?|begin\w*|ends?|ending"
    r"|occurr?\w*|about|approximately|around|roughly|which|that|time\w*|interval|span|segment|duration|seconds?|frames?|when"
    r"|confidence|severity|score|seen|visible|happen\w*|taking place|takes place)\b"
)
_AFTER_TIME = re.compile(
    r"[^\d]{0,40}\d[\d.,:\s\[\]()-]*"
    r"(?:(?:to|and|until|till|through|s|secs?|seconds?|m|mins?|minutes?)\b[\d.,:\s\[\]()-]*){0,8}"
    rf"(?:(?:there is|we see|i see) )?(?:an? |the )?((?!(?:there|it|this|no|not)\b){_NAME}?)"
    r"(?: (?:is )?(?:taking place|takes? place|occurr?(?:s|ed|ing)?|happen(?:s|ed|ing)?|can be seen"
    r"|breaks? out|broke out|erupts?|begins?|starts?"
    r"|is (?:seen|shown|visible)))?"
)
"""`between 00:04 and 00:10 a robbery occurs`, `4-10 s: robbery`."""


@dataclass(frozen=True)
class Finding:
    """What is said of a video: normal (label ""), or an anomaly with what is known of it."""

    label: str | None
    when: Interval | None


def finding(value: Any) -> Finding | None:
    """Of a parsed value or a text; None where neither a kind nor a time is said."""
    if isinstance(value, Mapping):
        named = {str(k).lower(): v for k, v in value.items()}
        said = [named[k] for k in KINDS if named.get(k) is not None and not isinstance(named[k], list | dict)]
        label = next((each for each in map(_label, said) if each is not None), None)
        when = next((interval_from(named[k]) for k in TIMES if named.get(k)), interval_from(value))
        none = any(k in named and named[k] is None for k in KINDS) and not said
        label = "" if label is None and (none or any(_is_no(each) for each in said)) else label
        return None if label is None and when is None else Finding(label, when)
    if isinstance(value, list | tuple):
        when = interval_from(value)
        return Finding(None, when) if when else None
    words = in_english(answers.bare(answers.without_questions(dressing.narrow(str(value)))).strip())
    text = _YES.sub("", answers.plain(_CAMEL.sub(" ", words).replace("\n", "; ")))
    if _NORMAL.fullmatch(text) or _SAID_NORMAL.fullmatch(text):
        return Finding("", None)
    if told := _TOLD.search(text):
        return Finding(_label(told[1] or told[2]), interval(text[told.end() :]))
    if re.fullmatch(_NAME, text):
        return Finding(text.replace("_", " "), None)
    kind = _NAMED.match(text)
    when = interval(text[kind.end(1) :] if kind else text)
    if kind and _others(text[kind.end(1) :]):
        return Finding(None, when) if when else None
    kind = kind or _AFTER_TIME.fullmatch(text)
    return Finding(kind[1].strip().replace("_", " ") if kind else None, when) if when else None


def _others(rest: str) -> bool:
    """Whether other names follow a name before the time is told: a list of kinds names none."""
    listed = re.split(r"[,;/]", re.split(r"\d", rest, maxsplit=1)[0])[1:]
    said = [re.sub(r"^(?:and |or )?(?:an? |the )?", "", each.strip()) for each in listed]
    return any(re.fullmatch(r"[a-z_-]+(?: (?!from\b|at\b|between\b)[a-z_-]+)?(?: (?:from|at|between))?", each)
               and not _BESIDE.match(each) for each in said)  # fmt: skip


def alike(first: str | None, second: str | None) -> bool:
    """Whether two names of a kind have the same stems: `Fighting` and `a fight`."""
    one, other = ([stem(word) for word in _WHO.sub("", name or "").split() if word not in ("a", "an", "the")]
                  for name in (first, second))  # fmt: skip
    return first == second or bool(one and one == other)


def _is_no(value: Any) -> bool:
    return value is False or bool(isinstance(value, str) and _NORMAL.fullmatch(answers.plain(value)))


def _label(value: Any) -> str | None:
    """A kind of anomaly; "" for normal, None where only yes or no is said."""
    if isinstance(value, bool) or not isinstance(value, str):
        return None
    text = answers.plain(_CAMEL.sub(" ", value)).replace("_", " ")
    if _NORMAL.fullmatch(text):
        return ""
    return None if boolean(text) is not None or not text else text


def true_finding(solution: Any) -> Finding:
    """RewardError for a truth without kind and time, or with a time that is no interval."""
    value = solution
    if isinstance(solution, str):
        text = answers.truth(solution)
        parsed = answers.json_value(text)
        value = text if parsed is None else parsed
    found = finding(value) if value is not None and value == value else None
    if found is None or (found.when is not None and found.when[1] <= found.when[0]):
        answers.refuse(solution, "says neither kind nor time", '{"label": "fighting", "time": [2, 8]}, or "normal"')
    return found


def read(answer: str) -> Finding | None:
    value = answers.merged(answers.json_value(answer))
    beside = isinstance(value, list) and re.search(r"[a-z]{3}", answer, re.IGNORECASE)
    said = finding(answer) if beside and "{" not in answer else None
    return said or finding(answer if value is None else value)


@kind(
    "video_anomaly",
    read=true_finding,
    valid=lambda text: read(text) is not None,
    answer='`{"label": "fighting", "time": [2, 8]}`, `fighting, 2 to 8 s`, `a fight between 2 and 8 s`, or that all '
    "is normal",
    truth="the same; what it does not say, kind or time, is not asked",
    aliases=("anomaly", "anomaly_detection", "anomaly_grounding", "vad"),
)
def video_anomaly(answer: str, right: Finding) -> Verdict:
    """Kind and time of an anomaly, half each where both are known; normal: 1 for an answer that says so, else 0."""
    found = read(answer)
    if found is None:
        return UNREAD
    normal = float((found.label == "") == (right.label == ""))
    if right.label == "":
        return Verdict(normal, True, {"detected": normal})
    parts = {"detected": normal}
    if right.label is not None:
        parts["label"] = float(alike(found.label, right.label))
    if right.when is not None:
        parts["time"] = overlap(found.when, right.when) if found.when and found.label != "" else 0.0
    asked = [value for name, value in parts.items() if name != "detected"]
    return Verdict(sum(asked) / len(asked), True, parts)
