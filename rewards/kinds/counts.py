"""Several counts at once, in order: how many circles, squares and triangles (VideoSSR, arXiv 2511.06281)."""

from __future__ import annotations

import re
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.languages import amounts, in_english
from mmrl.rewards.spelled import tidy
from mmrl.rewards.tables import grid
from mmrl.rewards.tasks import UNREAD, Verdict, kind

MOST = 20
LONGEST = 2000
_LISTED = re.compile(r"\s*[\[(]?\s*\d{1,6}(?:(?:\s*[,;/-]\s*|,?\s+and\s+|\s+)\d{1,6})*\s*[\])]?\s*\.?\s*")
_ITEM = r"[^\W\d][^\W\d ]*(?: [^\W\d]+){0,3}(?:\s*[:=]\s*|\s+-?\s*)\d{1,6}"
# an item that was read stays read, (?>...): "and" is a word as well as what joins, and n of them have 2^n readings
_NAMED = re.compile(rf"{_ITEM}(?>(?:\s*[,;]\s*(?:and\s+)?|\s+(?:and\s+)?){_ITEM})*+\.?")
_THING = r"(?:there (?:are|is) |i (?:see|count) )?\d{1,6} (?!and\b|in\b)[^\W\d]+(?: (?!and\b|in\b)[^\W\d]+)?"
_TOLD = re.compile(
    rf"{_THING}(?>(?:, ?| and |, ?and ){_THING})*+(?: in (?:the|this) (?:image|picture|video|clip|scene))?\.?",
    re.IGNORECASE,
)
_NO = re.compile(r"\b(?:no|zero) (?=[a-z])", re.IGNORECASE)
_CELLS = re.compile(r"^\s*\|\s*([^|\d]+?)\s*\|\s*(\d{1,6})\s*\|\s*$", re.MULTILINE)
_RULE = re.compile(r"^\s*\|[^|\n]*\|[^|\n]*\|\s*\n\s*\|[\s:|-]+\|\s*\n")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+(?=[^\W\d]|\d{1,6}\s+[^\W\d])", re.MULTILINE)
_LINE = re.compile(r"\s*(?:[-*\u2022]\s+)?(\d{1,6}(?:\s+[^\W\d]+){0,2})\s*[,;.]?\s*", re.IGNORECASE)
"""`1 circle`, a line for each."""
_NONE = re.compile(r"(?<=[:=])\s*(?:none|no|nil)\b", re.IGNORECASE)
_BRACKETED = re.compile(r"(?<=[^\W\d])\s*\(\s*(\d{1,6}|none|zero)\s*\)", re.IGNORECASE)
_LEAD = re.compile(r"\A[^\d\n]{1,100}:[ \t]*\n+")
"""`Here are the counts:`, on a line of its own."""


def counts(text: str) -> list[int] | None:
    """`1, 2, 1`, `[1, 2, 1]` or `circle: 1, square: 2`; None for anything else."""
    text = amounts(in_english(answers.bare(answers.without_questions(dressing.narrow(text[:LONGEST]))))).strip()
    text = re.sub(r"(?<=\d)\.0+(?![\d.])", "", text)
    if (rest := answers.corrected(text, most_words=MOST)) != text and (found := counts(rest)) and len(found) > 1:
        return found
    value = answers.merged(answers.json_value(text))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return (
            value if value and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value) else None
        )
    if (headed := _headed(text)) is not None:
        return headed
    said = answers.statements(text)
    text = _CELLS.sub(r"\1: \2;", _RULE.sub("", said[-1][1] if said else text)).strip("; ")
    text = _NONE.sub(" 0", _BRACKETED.sub(r": \1", _LEAD.sub("", text)))
    listed = _BULLET.sub("", text)
    lines = [_LINE.fullmatch(line) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(lines):
        listed = ", ".join(line[1] for line in lines if line)
    elif listed != text:
        listed = ", ".join(line.strip().rstrip(",;.") for line in listed.splitlines() if line.strip())
    text = _NO.sub("0 ", tidy(listed))
    if not any(each.fullmatch(text.strip()) for each in (_LISTED, _NAMED, _TOLD)):
        return None
    return [int(each) for each in re.findall(r"\d+", text)][: MOST + 1]


def _headed(text: str) -> list[int] | None:
    """The counts of a table with one row below the names: `| cats | dogs |` and `| 3 | 0 |`; None for another."""
    rows = grid(text)
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or any(re.search(r"\d", cell) for cell in rows[0]):
        return None
    cells = rows[1] if re.search(r"\d", rows[1][0]) else rows[1][1:]  # a row may have a name
    return [int(cell) for cell in cells] if cells and all(re.fullmatch(r"\d{1,6}", each) for each in cells) else None


def true_counts(solution: Any) -> list[int]:
    """RewardError for what is no list of counts."""
    values = list(solution.values()) if isinstance(solution, dict) else solution
    found = counts(str(list(values))) if isinstance(values, list | tuple) else counts(str(values))
    if not found or len(found) > MOST:
        answers.refuse(solution, "is no list of counts", "'1,2,1', or [1, 2, 1]")
    return found


@kind(
    "counts",
    read=true_counts,
    valid=lambda text: counts(text) is not None,
    answer="as many counts as asked, in order: `1,2,1`, `[1, 2, 1]`, `circle: 1, square: 2, triangle: 1`, "
    "`one circle, two squares and no triangle`",
    truth="the same",
    aliases=("multi_count", "video_counting", "shape_counting"),
)
def counts_kind(answer: str, right: list[int]) -> Verdict:
    """Several counts: mean of max(0, 1 - |d| / truth), or whether a truth of 0 is met; another number of them: 0."""
    found = counts(answer)
    if found is None:
        return UNREAD
    if len(found) != len(right):
        return Verdict(0.0, True, {"exact": 0.0})
    near = [max(0.0, 1 - abs(f - r) / r) if r else float(f == 0) for f, r in zip(found, right, strict=True)]
    return Verdict(sum(near) / len(near), True, {"exact": float(found == right)})
