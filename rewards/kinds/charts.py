"""Charts: one value read off within five percent (ChartQA's relaxed accuracy), or the whole table behind them.

A table is a mapping of names to values, of names to such mappings, or a list of records; each value is a pair
(path, value), and the score is the F1 of pairs: the path said, and the value within the tolerance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.distances import f1, words
from mmrl.rewards.named_values import LABELS, named
from mmrl.rewards.numbers import is_percent, number
from mmrl.rewards.tasks import UNREAD, Verdict, kind

MOST = 500
DEEPEST = 6
WRAPPED = ("data", "values", "table", "chart", "chart_data", "records", "rows", "answer")
_YEAR = re.compile(r"\s*(?:19|20)\d\d\s*")
_IN_YEAR = re.compile(r",?\s*\b(?:in|for|during|by|since|of|at)(?: the)?(?: year)? (?:19|20)\d\d\b,?", re.IGNORECASE)


class Percent(float):
    """A true value that was written as a percentage: `.25` answers `25%`."""


class Year(float):
    """A true value that was written as a year is met or not: 2019 is within five percent of 2020."""


Value = float | str


def near(said: Value, right: Value, tolerance: float) -> bool:
    """Numbers within `tolerance` of the truth, relative; texts alike up to case and final punctuation."""
    if isinstance(said, float) and isinstance(right, float):
        if isinstance(right, Year):
            return said == right
        return abs(said - right) <= tolerance * abs(right) + 1e-12
    return isinstance(said, str) and isinstance(right, str) and dressing.same(said, right)


def value(given: Any) -> Value | None:
    """A number where it is one, else its text."""
    if isinstance(given, bool) or given is None:
        return str(given).lower() if isinstance(given, bool) else None
    if isinstance(given, int | float):
        return float(given)
    read = number(str(given))
    if read is None:
        return answers.plain(dressing.narrow(str(given))) or None
    return Percent(read) if is_percent(str(given)) else Year(read) if _YEAR.fullmatch(str(given)) else read


def _inner(found: Any) -> Any:
    """The table of `{"title": ..., "data": {...}}`; what is no such mapping by itself."""
    named = {str(k).lower(): v for k, v in found.items()} if isinstance(found, Mapping) else {}
    inner = [named[name] for name in WRAPPED if isinstance(named.get(name), Mapping | list)]
    other = [v for k, v in named.items() if k not in WRAPPED]
    return inner[0] if len(inner) == 1 and not any(isinstance(v, Mapping | list) for v in other) else found


def pairs(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Value]]:
    """(path, value) of every leaf; the place in a list counts only where a record has no name of its own."""
    if len(path) > DEEPEST:
        return
    found = found if path else _inner(found)
    if isinstance(found, Mapping):
        for key, each in found.items():
            yield from pairs(each, (*path, answers.plain(str(key))))
    elif isinstance(found, list | tuple):
        for i, each in enumerate(found):
            yield from _entry(i, each, path)
    elif (leaf := value(found)) is not None:
        yield path, leaf


def _entry(place: int, each: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Value]]:
    if isinstance(each, Mapping) and len(each) > 1:
        label = next(((k, v) for k, v in each.items() if isinstance(v, str) and number(v) is None), None)
        label = label or next(((k, v) for k, v in each.items() if str(k).lower() in LABELS), None)
        if label and not isinstance(label[1], Mapping | list):
            rest = {k: v for k, v in each.items() if k != label[0]}
            named = next(iter(rest.values())) if len(rest) == 1 else rest
            yield from pairs(named, (*path, answers.plain(str(label[1]))))
            return
    if isinstance(each, list | tuple) and len(each) == 2 and isinstance(each[0], str):
        yield from pairs(each[1], (*path, answers.plain(each[0])))
        return
    yield from pairs(each, (*path, str(place)))


def true_chart(solution: Any) -> Any:
    """A value, a list of values in order, or the pairs of a table; RewardError for none."""
    parsed = answers.json_value(solution) if isinstance(solution, str) else solution
    if isinstance(parsed, Mapping) or (
        isinstance(parsed, list | tuple) and any(isinstance(e, Mapping | list) for e in parsed)
    ):
        found = dict(pairs(parsed))
        if not found or len(found) > MOST:
            answers.refuse(solution, "holds no values", '{"name": value, ...}')
        return found
    if isinstance(parsed, list | tuple) and len(parsed) > 1:
        listed = [value(each) for each in parsed]
        if any(each is None for each in listed):
            answers.refuse(solution, "has a blank value", "one for each")
        return listed
    if isinstance(solution, bool):
        return str(solution).lower()
    return value(answers.truth(solution))


def relaxed(answer: str, right: Value, tolerance: float, percent: bool) -> bool | None:
    """Whether one value is near enough; None for an answer that cannot be read."""
    answer = dressing.narrow(dressing.undressed(answer))
    if isinstance(right, str):
        said = answers.statements(answers.bare(answer))
        text = said[-1][1] if said else answers.bare(answer)
        return dressing.same(text, right) or dressing.says(text, right) if words(text) else None
    share = not percent and abs(right) <= 1
    read = number(answer, share=share)
    if read is None and (dated := _IN_YEAR.sub("", answer)) != answer:
        read = number(dated, share=share)  # "473.5 in 2020"
    if read is None:
        return None
    marked = is_percent(answer)
    shared = [read / 100] if marked else [100 * read] if isinstance(right, Percent) and abs(read) <= 1 else []
    return any(near(each, right, tolerance) for each in (read, *shared))


def listed(answer: str) -> Any:
    """The names and values of an answer: its JSON, its table, or as they are listed; None for none."""
    parsed = answers.merged(answers.json_value(answer))
    return named(dressing.narrow(answer)) if parsed is None else parsed


def _parts(answer: str) -> list[str]:
    answer = answer.strip()
    answer = answer[1:-1] if answer[:1] == "[" and answer[-1:] == "]" else answer
    return [each for each in re.split(r",(?!\d{3}\b)|;|\n|\band\b", dressing.narrow(answer)) if each.strip()]


@kind(
    "chart",
    read=true_chart,
    valid=lambda text: number(text) is not None or bool(words(text)),
    answer="a number or text; for a table JSON of names to values, of names to such mappings, or a list of records, "
    "the table itself, CSV, lines `2019: 10`, or `A is 1 and B is 2`",
    truth="the same; a list of values is answered by a list in its order; a year such as 2020 has no tolerance",
    aliases=("chart_qa", "chartqa", "plot_qa", "chart_to_table", "figure_qa", "relaxed_accuracy"),
)
def chart(answer: str, right: Any, *, tolerance: float = 0.05) -> Verdict:
    """A value read off a chart within `tolerance` of the truth; for a table, the F1 of its names with their values."""
    if isinstance(right, dict):
        parsed = listed(answer)
        found = dict(list(pairs(parsed))[: 4 * MOST]) if parsed is not None else {}
        if not found:
            return UNREAD
        hits = sum(path in found and near(found[path], wanted, tolerance) for path, wanted in right.items())
        named = sum(path in found for path in right)
        return Verdict(f1(hits, len(found), len(right)), True, {"names": f1(named, len(found), len(right))})
    if isinstance(right, list):
        parsed = answers.json_value(answer)
        texts = [str(e) for e in parsed] if isinstance(parsed, list) else _parts(answer)
        if len(texts) != len(right):
            return Verdict(0.0, len(texts) > 1)
        return Verdict(
            sum(bool(relaxed(t, r, tolerance, False)) for t, r in zip(texts, right, strict=True)) / len(right)
        )
    hit = relaxed(answer, right, tolerance, percent=False)
    return UNREAD if hit is None else Verdict(float(hit))
