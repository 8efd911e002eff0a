"""Multi-image matching: which of one row belongs to which of another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.languages import in_english
from mmrl.rewards.sequences import folded
from mmrl.rewards.tasks import UNREAD, Verdict, kind

MOST = 100
LONGEST = 20_000
_ARROW = re.compile(r"\\(?:to|rightarrow|leftrightarrow|Rightarrow|longrightarrow|mapsto)(?![a-zA-Z])")
_THING = r"(?:image|picture|photo|figure|item|frame|region|view|point|option|caption|description|text|letter)"
_PAIR = re.compile(
    rf"{_THING}?\s*[(\[\"']?([\w.]{{1,20}})[)\]\"']?\s*"
    r"(?:<?-+>?|=>?|[\u2192\u2194\u21d4]|\u2014|\u2013|:|\b(?:matches|pairs|is matched|is paired)(?: with| to)?\b|"
    r"\b(?:corresponds|belongs) to\b|\bgoes with\b|\bto\b|\bwith\b|\bis\b)\s*"
    rf"{_THING}?\s*[(\[\"']?([\w.]{{1,20}})[)\]\"']?\s*"
    r"(?=$|[,;.\n)]|\band\b)", re.I
)  # fmt: skip
_SIDE = r"[\"']?([\w.]{1,20})[\"']?"
_TUPLE = re.compile(rf"[(\[]\s*{_SIDE}\s*,\s*{_SIDE}\s*[)\]]")
_TUPLES = re.compile(rf"[\[(]?\s*{_TUPLE.pattern}(?:\s*[,;]?\s*{_TUPLE.pattern})*\s*[\])]?\.?")
_JOINED = re.compile(r"(\d{1,2})([A-Za-z])|([A-Za-z])(\d{1,2})")
_RUN = re.compile(r"(?:\d{1,2}[A-Za-z]){2,}\.?")
_BOTH = re.compile(r"\b(\d{1,2}) and ([A-Za-z])\b")
_ANDED = re.compile(rf"{_BOTH.pattern}(?:\s*[,;]\s*{_BOTH.pattern})+\.?")
"""`1 and B, 2 and A`."""
_NUMBERED = re.compile(r"\s*(\d{1,2})\s*[.)]\s*([A-Za-z0-9]{1,20})\s*\.?")
_ROWS = re.compile(r"^\s*\|\s*([\w.]{1,20})\s*\|\s*([\w.]{1,20})\s*\|\s*$", re.MULTILINE)


def pairs(value: Any) -> dict[str, str] | None:
    """{left: right} of an answer or truth; None for none, and where one side comes twice."""
    value = answers.merged(value)
    if isinstance(value, Mapping):
        inner = next((v for v in value.values() if isinstance(v, Mapping | list)), None)
        if inner is not None:
            return pairs(inner) if len(value) == 1 else None
        found = [(folded(str(a)), folded(str(b))) for a, b in value.items()]
    elif isinstance(value, list | tuple):
        each_pair = [list(each.values()) if isinstance(each, Mapping) else each for each in value]
        if not value or not all(isinstance(each, list | tuple) and len(each) == 2 for each in each_pair):
            return None
        found = [(folded(str(a)), folded(str(b))) for a, b in each_pair]
    else:
        text = answers.bare(answers.without_questions(in_english(dressing.narrow(str(value)[:LONGEST]))))
        text = _ARROW.sub(" -> ", answers.undollar(text))
        if (rest := answers.corrected(text, most_words=MOST)) != text and (better := pairs(rest)):
            return better
        parsed = answers.json_value(text)
        if parsed is not None:
            return pairs(parsed)
        found = [(folded(a), folded(b)) for a, b in _written(text)]
    lefts, rights = [a for a, _ in found], [b for _, b in found]
    if not found or len(found) > MOST or len(set(lefts)) < len(lefts) or len(set(rights)) < len(rights):
        return None
    return dict(found)


def _written(text: str) -> list[tuple[str, str]]:
    """The pairs of a text: `(1, B), (2, A)`, `1B, 2A`, rows of a table, or with a word or sign between."""
    if _TUPLES.fullmatch(text.strip()):
        return _TUPLE.findall(text)
    if run := _RUN.fullmatch(text.strip()):
        return re.findall(r"(\d{1,2})([A-Za-z])", run[0])
    if _ANDED.fullmatch(text.strip()):
        return _BOTH.findall(text)
    joined = [_JOINED.fullmatch(each.strip()) for each in re.split(r"[,;\s]+", text.strip().rstrip("."))]
    if len(joined) > 1 and all(joined):
        return [(each[1] or each[3], each[2] or each[4]) for each in joined if each]
    lines = [_NUMBERED.fullmatch(each) for each in re.split(r"[,;\n]", text) if each.strip()]
    if len(lines) > 1 and all(lines):
        return [(each[1], each[2]) for each in lines if each]
    rows = _ROWS.findall(text)
    headed = re.match(r"\s*\|[^\n]*\|\s*\n\s*\|[\s:|-]+\|\s*\n", text)
    return rows[1:] if rows and headed else rows or _PAIR.findall(re.sub(r"[({<]", " ", text).replace("}", " "))


def true_pairs(solution: Any) -> dict[str, str]:
    """RewardError for a truth that pairs nothing, or one thing twice."""
    value = solution if isinstance(solution, Mapping | list | tuple) else answers.truth(solution)
    found = pairs(value)
    if not found:
        answers.refuse(solution, "pairs nothing, or one thing twice", '{"1": "B", "2": "A"}, or "1-B, 2-A"')
    return found


@kind(
    "matching",
    read=true_pairs,
    valid=lambda text: pairs(text) is not None,
    answer='pairs: `1-B, 2-A`, `1 -> B`, `{"1": "B"}`, `[["1", "B"]]`; one thing in two pairs is no matching',
    truth="the same",
    aliases=("multi_image_matching", "image_matching", "correspondence", "visual_correspondence"),
)
def matching(answer: str, right: dict[str, str]) -> Verdict:
    """Share of the pairs that are right, over the larger number of pairs."""
    found = pairs(answer)
    if found is None:
        return UNREAD
    if not found.keys() & right.keys() and found.keys() <= set(right.values()):
        found = {b: a for a, b in found.items()}  # told from the other side
    hits = sum(found.get(left) == partner for left, partner in right.items())
    return Verdict(hits / max(len(found), len(right)), True, {"exact": float(found == right)})
