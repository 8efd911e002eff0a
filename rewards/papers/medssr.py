"""MedSSR's reward: rows with a truth are judged by it, rows without one by what most of their group answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.accuracy import check_row, judge
from mmrl.rewards.label_free import answer_number
from mmrl.rewards.registry import reward
from mmrl.selection.labelled import is_labelled


def majority(numbers: Sequence[int]) -> int:
    """The number most often given, the first of equals; 0, no answer, never wins against one.

    >>> majority([0, 0, 7, 5, 5]), majority([0, 0])
    (5, 0)
    """
    votes = Counter(number for number in numbers if number)
    return max(votes, key=lambda number: votes[number]) if votes else 0


def check_labelled(row: Mapping[str, Any], **_: Any) -> None:
    """RewardError for a row that does not say whether it is labelled, or is and cannot be judged."""
    if _labelled(row.get("labelled")):
        check_row(row)


def _labelled(value: Any) -> bool:
    try:
        return is_labelled(value)
    except ValueError as error:
        raise RewardError(str(error), "labelled") from None


@reward(
    "medssr",
    isolated=False,
    success=True,
    check=check_labelled,
    paper="MedSSR, arXiv 2604.11547",
    formula="[the answer is the group's most frequent one] without a truth, else whether it is right",
    confidence="partly",
)
def medssr(
    completions: Sequence[str], prompt_id: Sequence[Any], labelled: Sequence[Any], solution=None, task=None,
    options=None, *, whole: bool = False,
) -> list[dict[str, float | None]]:  # fmt: skip
    """Self-supervised where `labelled` is false, supervised where it is true: `accuracy` of the row's `task`.

    whole  a text without tag or box is an answer that votes, too

    `agreement` is the vote's part and `accuracy` the truth's, each of its own rows; only the truth says what success
    is. A single answer agrees with itself. Rows with pseudo-labels of your own in `solution` are labelled ones. Source:
    the paper's abstract and README (tdlhl/MedSSR), whose labels are voted once, before training; here a group votes
    anew each time.
    """
    groups: dict[Any, list[int]] = {}
    for place, name in enumerate(prompt_id):
        groups.setdefault(name, []).append(place)
    numbers = [answer_number(text, whole=whole) for text in completions]
    scores: list[dict[str, float | None]] = [{}] * len(completions)
    for rows in groups.values():
        if _labelled(labelled[rows[0]]):
            if solution is None or task is None:
                raise RewardError(
                    "medssr: a labelled row is judged by `solution` and `task`, which every row then needs as a "
                    "column, null where there is none"
                )
            for row in rows:
                texts = None if options is None else options[row]
                right = judge(completions[row], solution[row], task[row], options=texts)
                scores[row] = {"score": right, "success": right, "accuracy": right}
        else:
            voted = majority([numbers[row] for row in rows])
            for row in rows:
                agrees = float(voted > 0 and numbers[row] == voted)
                scores[row] = {"score": agrees, "agreement": agrees, "success": None}
    return scores
