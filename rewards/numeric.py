"""Numbers: equal, close, or equal as mathematics."""

from __future__ import annotations

import logging

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.registry import reward
from mmrl.rewards.text import exact


def equal(completion: str, solution: str | float, *, decimals: int = 2) -> float:
    """1 if both round to the same number (EasyVideoR1). Small truths want more `decimals`: 0.001 rounds to 0."""
    right, predicted = _pair(completion, solution)
    return float(predicted is not None and round(predicted, decimals) == round(right, decimals))


def mean_relative_accuracy(completion: str, solution: str | float) -> float:
    """Mean over thresholds .50, .55, ... .95 of [relative error < 1 - threshold] (VSI-Bench's MRA).

    Peers add 1e-8 to the divisor, which moves errors that lie exactly on a threshold; here thresholds are k/20 and
    an error on one is a miss: 12 for 10 gives .6. A truth of 0 asks for 0.
    """
    right, predicted = _pair(completion, solution)
    if predicted is None:
        return 0.0
    if right == 0:
        return float(predicted == 0)
    error = abs(predicted - right) / abs(right)
    return sum(error < 1 - k / 20 - 1e-9 for k in range(10, 20)) / 10


def _pair(completion: str, solution: str | float) -> tuple[float, float | None]:
    """(truth, prediction or None). A truth written without `%` and at most 1 is a share: `50%` matches .5."""
    text = answers.truth(solution)
    right = answers.number(text)
    if right is None:
        raise RewardError(f"solution {solution!r} is not one number")
    share = "%" not in text and abs(right) <= 1
    return right, answers.number(answers.extract(completion), share=share)


def mathematics(completion: str, solution: str) -> float:
    r"""1 if answer and truth are the same expression, by math-verify: `1/2` and `\frac{2}{4}` are.

    An answer must be tagged or boxed: the whole text is never searched. sympy can run for minutes, and
    math-verify's own limits need the main thread's alarm, so time is limited by the worker process.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns on every call without its own limit
    answer = answers.extract(completion, whole=False)
    if not answer:
        return 0.0
    right = answers.truth(solution)
    if answers.plain(answer) == answers.plain(right):
        return 1.0
    gold = parse(f"${right}$", parsing_timeout=None)
    if not gold:
        return exact(completion, solution)
    predicted = parse(f"${answer}$", parsing_timeout=None)
    return float(verify(gold, predicted, timeout_seconds=None))


@reward("number", success=True)
def number(completions, solution, *, decimals: int = 2) -> list[float]:
    """1 if answer and truth round to the same number of `decimals` digits."""
    return [equal(c, s, decimals=decimals) for c, s in zip(completions, solution, strict=True)]


@reward("regression", success=True)
def regression(completions, solution) -> list[float]:
    """Share of ten thresholds .50 ... .95 with relative error below 1 - threshold."""
    return [mean_relative_accuracy(c, s) for c, s in zip(completions, solution, strict=True)]


@reward("math", success=True)
def math(completions, solution) -> list[float]:
    """1 if the tagged or boxed answer and the truth are the same expression, by math-verify."""
    return [mathematics(c, s) for c, s in zip(completions, solution, strict=True)]
