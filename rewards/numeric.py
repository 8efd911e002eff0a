"""Numbers: equal, or close by relative error."""

from __future__ import annotations

import re
from typing import Any

from mmrl.rewards import answers, units
from mmrl.rewards.boxes import says_none
from mmrl.rewards.languages import amounts
from mmrl.rewards.numbers import is_percent, number
from mmrl.rewards.registry import checks, reward

_NONE = re.compile(r"\s*(?:none\b|no [a-z]|there (?:is|are) )", re.IGNORECASE)


def true_number(solution: Any) -> tuple[float, bool]:
    """(value, whether it is a percentage); RewardError for a truth that is not one number for certain."""
    if isinstance(solution, bool):
        answers.refuse(solution, "is yes or no", "one number, or the task `boolean`")
    if isinstance(solution, list | tuple) and len(solution) > 1:
        found = {true_number(each) for each in solution}
        if len(found) != 1:
            answers.refuse(solution, "holds several numbers", "one number")
        return found.pop()
    text = answers.truth(solution)
    value = number(text)
    if value is None:
        answers.refuse(solution, "is not one number", "one, as in 3, -1,234.5, 3/4, 50%, 2 million")
    return value, is_percent(text)


def candidates(completion: str, solution: Any) -> tuple[float, list[float]]:
    """The truth, and what an answer may mean: beside a share `50%` is .5, beside a percentage `.5` is 50."""
    right, percent = true_number(solution)
    text = units.with_unit(amounts(answers.extract(completion)))
    predicted = number(text, share=not percent and abs(right) <= 1)
    if predicted is None and right == 0 and _NONE.match(text) and says_none(text):
        return right, [0.0]
    if predicted is None:
        return right, []
    wanted = answers.truth(solution) if isinstance(solution, str) else ""
    if wanted and (units.disagree(text) or (not percent and is_percent(text) and units.units(wanted))):
        return right, []
    if wanted and units.differ(text, wanted):
        return right, [predicted * factor for factor in units.factors(text, wanted)]
    return right, [predicted, 100 * predicted] if percent and not is_percent(text) else [predicted]


def equal(completion: str, solution: Any, *, decimals: int = 2) -> float:
    """1 if both round to the same number (EasyVideoR1). Small truths want more `decimals`: 0.001 rounds to 0."""
    right, predicted = candidates(completion, solution)
    return float(any(round(each, decimals) == round(right, decimals) for each in predicted))


def mean_relative_accuracy(completion: str, solution: Any) -> float:
    """Mean over thresholds .50, .55, ... .95 of [relative error < 1 - threshold] (VSI-Bench's MRA).

    Peers add 1e-8 to the divisor, which moves errors that lie exactly on a threshold; here thresholds are k/20 and
    an error on one is a miss: 12 for 10 gives .6. A truth of 0 asks for 0.
    """
    right, predicted = candidates(completion, solution)
    return max((_relative(each, right) for each in predicted), default=0.0)


def _relative(predicted: float, right: float) -> float:
    if right == 0:
        return float(predicted == 0)
    error = abs(predicted - right) / abs(right)
    return sum(error < 1 - k / 20 - 1e-9 for k in range(10, 20)) / 10


@reward("number", success=True, check=checks(true_number))
def number_reward(completions, solution, *, decimals: int = 2) -> list[float]:
    """1 if answer and truth round to the same number of `decimals` digits."""
    return [equal(c, s, decimals=decimals) for c, s in zip(completions, solution, strict=True)]


@reward("regression", success=True, check=checks(true_number))
def regression(completions, solution) -> list[float]:
    """Share of ten thresholds .50 ... .95 with relative error below 1 - threshold."""
    return [mean_relative_accuracy(c, s) for c, s in zip(completions, solution, strict=True)]
