"""Reading names with their values as people list them: `2019: 10`, `A is 1 and B is 2`, `A 1, B 2`, `A (1)`, CSV.

    named("Germany: 10\\nFrance: 20")              {"Germany": "10", "France": "20"}
    named("A is 1 while B is 2")                  {"A": "1", "B": "2"}
    named("| A | 1 |\\n| B | 2 |")                 {"A": "1", "B": "2"}
    named("name,2019,2020\\nA,1,2")                {"A": {"2019": "1", "2020": "2"}}

Every part of the text must be such a pair: of a text that says more, nothing is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.numbers import number
from mmrl.rewards.tables import grid, table

LONGEST = 20_000
LABELS = ("year", "date", "month", "quarter", "label", "name", "category", "x")  # what names a record of numbers
_LINES = re.compile(r"[\n;]|,(?=[^,:=]*[:=])")
_ITEM = re.compile(r"\W*([^:=|]{1,80}?)\s*[:=]\s*([^:=|]{1,80}?)\W*")
_CLAUSES = re.compile(
    r"[\n;]|,(?!\d{3}\b)\s*(?:(?:and|while|whereas|but)\b)?|\b(?:and|while|whereas|but)\b", re.IGNORECASE
)
_NAME = r"(?:(?:19|20)\d\d|[^\W\d](?:(?:(?!\b(?:is|are|was|were|not|or|than)\b)[^,;:=\n]){0,60}?[^\s,;:=(])??)"
_VALUE = r"[-+\u2212]?\s?[$\u20ac\u00a3\u00a5]?\d[\d.,]*(?:\s?(?:%|[a-z]{1,12}))?"
_TOLD = re.compile(
    rf"\s*(?:[-*\u2022]\s+|\d{{1,2}}[.)]\s+)?(?:(?:the )?values? (?:of|for) )?({_NAME})\s*(?:"
    r"\s(?:is|are|was|were|has|had|at|with|equals)\s(?:(?:at|about|approximately|around|a value of)\s)?"
    rf"\s*({_VALUE})|\(\s*({_VALUE})\s*\)|[\s\u2013\u2014-]\s*({_VALUE}))\s*\.?\s*",
    re.IGNORECASE,
)
_SHOWS = re.compile(
    r"\A\s*(?:(?:the |this )?(?:chart|graph|figure|plot|table|data) (?:shows|says|indicates)(?: that)?"
    r"|according to the (?:chart|graph|figure|plot|table|data),?)\s+",
    re.IGNORECASE,
)
_LEAD = re.compile(r"\A\s*[^:\n|]{1,100}:[ \t]*(?:\n+|(?=[^\n]{0,80}?[^\W\d][^\n]{0,80}?\d))")
"""What is said before the values: `Here are the values:`."""
_TITLE = re.compile(r"\A\s*TITLE\s*\|[^\n]*\n", re.IGNORECASE)
_INVERTED = re.compile(
    rf"\s*(?:[^\W\d][^\d,;:=\n]{{0,40}}?\b(?:is|are|was|were)\s+)?({_VALUE})\s+(?:in|for)\s+({_NAME})\s*\.?\s*",
    re.IGNORECASE,
)
"""`10 in 2019`."""
_YEAR = re.compile(r"\s*(?:19|20)\d\d\s*")


def named(text: str) -> dict[str, Any] | None:
    """The values by their names, as they are written; None for what is no list of them."""
    text = text[:LONGEST]
    text = text.replace("<0x0A>", "\n")  # of DePlot
    if found := table(text):
        return _tabled([[cell.text for cell in row.children] for row in found.children])
    text = answers.bare(re.sub(r"\A\s*```\w*\n(.*?)```\s*\Z", r"\1", text, flags=re.DOTALL)).strip()
    text = _SHOWS.sub("", text)
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all("|" in line for line in lines) and (rows := grid(_TITLE.sub("", text))):
        return _tabled(rows)
    readings = [read(each) for each in (text, _LEAD.sub("", text, count=1)) for read in (_items, _told)]
    if any(readings):
        return max((each for each in readings if each), key=len)
    rows = grid(text)
    return _tabled(rows) if rows else None


def _items(text: str) -> dict[str, Any] | None:
    """`2019: 10`, on lines or after one another."""
    return _each(_LINES.split(text), _pair)


def _pair(line: str) -> tuple[str, str] | None:
    match = _ITEM.fullmatch(line)
    return (match[1], match[2]) if match else None


def _told(text: str) -> dict[str, Any] | None:
    """`A is 1 and B is 2`, `A 1, B 2`, `A (1), B (2)`."""
    return _each(_CLAUSES.split(text), _clause)


def _clause(text: str) -> tuple[str, str] | None:
    if inverted := _INVERTED.fullmatch(text):
        return inverted[2], inverted[1]
    match = _TOLD.fullmatch(text)
    return (match[1], next(group for group in match.groups()[1:] if group)) if match else None


def _each(parts: list[str], read: Callable[[str], tuple[str, str] | None]) -> dict[str, Any] | None:
    said = [each for each in parts if each and each.strip()]
    pairs = [read(each) for each in said]
    found = dict(pair for pair in pairs if pair)
    return found if found and len(found) == len(said) else None


def _tabled(rows: list[list[str]]) -> dict[str, Any]:
    """The rows under their head by their first cells; two columns without a head are names and values."""
    head, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if len(body) == 1 and _is_wide(head, body[0]):
        return dict(zip(head, body[0], strict=True))
    if len(head) == 2:
        headless = number(head[1]) is not None and not _YEAR.fullmatch(head[1])
        return {row[0]: row[1] for row in ([head] * headless + body)}
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def _is_wide(head: list[str], row: list[str]) -> bool:
    """Whether one row of numbers stands below its names: `| 2019 | 2020 |` and `| 10 | 20 |`."""
    named = all(head) and not any(number(name) is not None and not _YEAR.fullmatch(name) for name in head)
    labelled = head[0].lower() in LABELS or _YEAR.fullmatch(row[0])
    return bool(named and not labelled and all(number(cell) is not None for cell in row))
