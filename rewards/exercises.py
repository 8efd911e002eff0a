"""Exercises made from texts that are right already: fill masks, order steps, judge a rubric.

`mmrl.data.exercises` makes their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.choice import single
from mmrl.rewards.options import true_option
from mmrl.rewards.registry import checks, reward


def true_list(solution: Any) -> list:
    """The texts of a solution, from JSON where it is text; RewardError for no list, or one with blanks."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    if not isinstance(value, list) or not value or any(answers.is_missing(each) for each in value):
        raise RewardError(
            f"solution {solution!r} is no list; expected the texts, or the numbers of the steps", "solution"
        )
    return value


def true_steps(solution: Any) -> list:
    """A list in which no step comes twice."""
    value = true_list(solution)
    if len(set(map(str, value))) != len(value):
        answers.refuse(solution, "names a step twice", "every step once, in the right order")
    return value


@reward(
    "masked_fill",
    check=checks(true_list),
    method="mr_rlvr",
    paper="MR-RLVR, arXiv 2511.17473",
    formula="mean over masks of [filled = true]",
    confidence="reconstructed",
)
def masked_fill(completions, solution) -> list[float]:
    """Share of masked spans filled right: the answer is a JSON list of texts, as the solution is."""
    scores = []
    for completion, wanted in zip(completions, map(true_list, solution), strict=True):
        given = answers.json_value(answers.extract(completion))
        filled = [str(g) for g in given] if isinstance(given, list) else []
        right = sum(answers.plain(g) == answers.plain(str(w)) for g, w in zip(filled, wanted, strict=False))
        scores.append(right / max(len(filled), len(wanted)))  # more guesses than masks gain nothing
    return scores


def ordered_pairs(order: Sequence, true: Sequence) -> float:
    """Share of pairs whose order is right; 1 for a single step."""
    place = {step: i for i, step in enumerate(order)}
    pairs = list(combinations(true, 2))
    return sum(place[a] < place[b] for a, b in pairs) / len(pairs) if pairs else 1.0


@reward(
    "step_order",
    check=checks(true_steps),
    method="mr_rlvr",
    paper="MR-RLVR, arXiv 2511.17473",
    formula="share of steps at their place, or of pairs in the right order",
    confidence="reconstructed",
)
def step_order(completions, solution, *, by: str = "position") -> list[float]:
    """Shuffled steps put in order: the answer lists their numbers; `by` is position or pairs. No permutation: 0."""
    if by not in ("position", "pairs"):
        raise RewardError(f"step_order: by is {by!r}; expected 'position' or 'pairs'")
    scores = []
    for completion, wanted in zip(completions, map(true_steps, solution), strict=True):
        given = answers.json_value(answers.extract(completion))
        if not isinstance(given, list) or sorted(map(str, given)) != sorted(map(str, wanted)):
            scores.append(0.0)
        elif by == "pairs":
            scores.append(ordered_pairs(list(map(str, given)), list(map(str, wanted))))
        else:
            scores.append(sum(str(g) == str(w) for g, w in zip(given, wanted, strict=True)) / len(wanted))
    return scores


@reward(
    "golden_goose",
    success=True,
    check=checks(true_option, "options"),
    paper="Golden Goose: unverifiable text as multiple choice, 2026",
    formula="[chosen letter = true letter]",
    confidence="partly",
)
def golden_goose(completions, solution, options) -> list[float]:
    """Which of the options is the hidden step: 1 for its letter, or its text spelt out."""
    return [single(c, s, o) for c, s, o in zip(completions, solution, options, strict=True)]


@reward(
    "c2",
    check=checks(answers.truth),
    paper="C2: accept or reject a rubric before using it, arXiv 2604.13618",
    formula=".6 [preference right] + .3 [verdict on the rubric right] + .1 [format]",
)
def c2(completions, solution, rubric_verdict=None) -> list[float]:
    """A judge's JSON {"preference", "rubric"}: preference against `solution`, verdict against `rubric_verdict`."""
    verdicts = rubric_verdict or [None] * len(completions)
    scores = []
    for completion, preference, verdict in zip(completions, solution, verdicts, strict=True):
        value = answers.json_value(answers.extract(completion))
        said = value if isinstance(value, dict) else {}
        right = _same(said.get("preference"), preference)
        judged = verdict is not None and _same(said.get("rubric"), verdict)
        scores.append(0.6 * right + 0.3 * judged + 0.1 * ("preference" in said))
    return scores


def _same(given: object, wanted: object) -> bool:
    return given is not None and answers.plain(str(given)) == answers.plain(str(wanted))
