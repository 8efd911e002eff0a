"""Charts: one value read off within five percent (ChartQA's relaxed accuracy), or the whole table behind them.

A table is a mapping of names to values, of names to such mappings, or a list of records; each value is a pair
(path, value), and the score is the F1 of pairs: the path said, and the value within the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.distances import f1, words
from mmrl.rewards.numbers import is_percent, number
from mmrl.rewards.tasks import UNREAD, Verdict, kind

MOST = 500
DEEPEST = 6
Value = float | str


def near(said: Value, right: Value, tolerance: float) -> bool:
    """Numbers within `tolerance` of the truth, relative; texts alike up to case and final punctuation."""
    if isinstance(said, float) and isinstance(right, float):
        return abs(said - right) <= tolerance * abs(right) + 1e-12
    return isinstance(said, str) and isinstance(right, str) and answers.plain(said) == answers.plain(right)


def value(given: Any) -> Value | None:
    """A number where it is one, else its text."""
    if isinstance(given, bool) or given is None:
        return str(given).lower() if isinstance(given, bool) else None
    if isinstance(given, int | float):
        return float(given)
    read = number(str(given))
    return read if read is not None else (answers.plain(str(given)) or None)


def pairs(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Value]]:
    """(path, value) of every leaf; the place in a list counts only where a record has no name of its own."""
    if len(path) > DEEPEST:
        return
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
        if label:
            rest = {k: v for k, v in each.items() if k != label[0]}
            named = next(iter(rest.values())) if len(rest) == 1 else rest
            yield from pairs(named, (*path, answers.plain(label[1])))
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
    if isinstance(right, str):
        said = answers.statements(answers.bare(answer))
        text = said[-1][1] if said else answers.bare(answer)
        return answers.plain(text) == right if words(text) else None
    read = number(answer, share=not percent and abs(right) <= 1)
    if read is None:
        return None
    return near(read, right, tolerance) or (is_percent(answer) and near(read / 100, right, tolerance))


@kind(
    "chart",
    read=true_chart,
    valid=lambda text: number(text) is not None or bool(words(text)),
    answer="a number or text; for a table JSON of names to values, of names to such mappings, or a list of records",
    truth="the same; a list of values is answered by a list in its order",
    aliases=("chart_qa", "chartqa", "plot_qa", "chart_to_table", "figure_qa", "relaxed_accuracy"),
)
def chart(answer: str, right: Any, *, tolerance: float = 0.05) -> Verdict:
    """A value read off a chart within `tolerance` of the truth; for a table, the F1 of its names with their values."""
    if isinstance(right, dict):
        parsed = answers.json_value(answer)
        found = dict(list(pairs(parsed))[: 4 * MOST]) if parsed is not None else {}
        if not found:
            return UNREAD
        hits = sum(path in found and near(found[path], wanted, tolerance) for path, wanted in right.items())
        named = sum(path in found for path in right)
        return Verdict(f1(hits, len(found), len(right)), True, {"names": f1(named, len(found), len(right))})
    if isinstance(right, list):
        parsed = answers.json_value(answer)
        texts = [str(e) for e in parsed] if isinstance(parsed, list) else [e for e in answer.split(",") if e.strip()]
        if len(texts) != len(right):
            return Verdict(0.0, len(texts) > 1)
        return Verdict(
            sum(bool(relaxed(t, r, tolerance, False)) for t, r in zip(texts, right, strict=True)) / len(right)
        )
    hit = relaxed(answer, right, tolerance, percent=False)
    return UNREAD if hit is None else Verdict(float(hit))
