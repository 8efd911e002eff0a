"""Accuracy: the column `task` says how an answer is judged.

An unknown task, or a truth its scorer cannot read, is an error that names the row: nothing falls back to text
similarity. Rules and their sources are in the scorers' own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards import choice, expressions, grounding, numeric, temporal, text
from mmrl.rewards.booleans import boolean, true_boolean
from mmrl.rewards.boxes import boxes, says_none
from mmrl.rewards.chosen import chosen, several
from mmrl.rewards.intervals import interval
from mmrl.rewards.numbers import number
from mmrl.rewards.options import Options, true_option
from mmrl.rewards.registry import checks, reward


@dataclass(frozen=True)
class Task:
    """How answers of one kind are judged.

    score    (completion, solution, **context) -> number in [0, 1]; RewardError for a truth that cannot be read
    check    the check of the reward that this task is, so that both refuse the same rows
    valid    whether the text of an answer has the right type, right or wrong; read by graded format
    aliases  other names of the same task
    reads    which settings of the row or of the reward `score` takes
    """

    score: Callable[..., float]
    check: Callable[..., Any]
    valid: Callable[[str], bool]
    aliases: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


BOX_SETTINGS = ("box_format", "truth_format", "image_size", "resized_size")


def _is_option(answer: str) -> bool:
    return chosen(answer, Options()) is not None


def _is_number(answer: str) -> bool:
    return number(answer) is not None


TASKS: dict[str, Task] = {
    "exact": Task(text.exact, checks(text.true_texts), bool, ("exact_match", "text")),
    "choice": Task(
        choice.single,
        checks(true_option, "options"),
        _is_option,
        ("multiple_choice", "mcq", "single_choice"),
        ("options",),
    ),
    "multi_choice": Task(
        choice.several,
        checks(choice.true_options, "options"),
        lambda a: bool(several(a, Options())),
        ("multi_answer", "multiple_answer_choice"),
        ("options", "strict"),
    ),
    "boolean": Task(
        choice.yes_no, checks(true_boolean), lambda a: boolean(a) is not None, ("yes_no", "judge")
    ),
    "numeric": Task(
        numeric.equal,
        checks(numeric.true_number),
        _is_number,
        ("numerical", "number", "count", "counting"),
        ("decimals",),
    ),
    "regression": Task(numeric.mean_relative_accuracy, checks(numeric.true_number), _is_number, ("mra",)),
    "math": Task(expressions.mathematics, checks(expressions.true_expression), bool, ("mathematics",)),
    "temporal": Task(
        temporal.when,
        checks(temporal.true_interval),
        lambda a: interval(a) is not None,
        ("temporal_grounding", "temporal_iou"),
    ),
    "box": Task(
        grounding.where,
        grounding.check_boxes,
        lambda a: bool(boxes(a)) or says_none(a),
        ("spatial_grounding", "grounding", "bbox", "rec"),
        (*BOX_SETTINGS, "threshold"),
    ),
    "boxes": Task(
        lambda completion, solution, **settings: grounding.where(completion, solution, every=True, **settings),
        grounding.check_boxes,
        lambda a: bool(boxes(a)) or says_none(a),
        ("detection", "multi_box"),
        BOX_SETTINGS,
    ),
}
_NAMES = {alias: task for task, entry in TASKS.items() for alias in (task, *entry.aliases)}


def find_task(name: Any) -> Task:
    """The task of a name or alias, whatever its case and separators. Raises RewardError."""
    key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    if key not in _NAMES:
        raise RewardError(unknown("task", str(name), TASKS, _NAMES), column="task")
    return TASKS[_NAMES[key]]


def check_row(row: Mapping[str, Any], **settings: Any) -> None:
    """Raise RewardError if no answer to this row could be judged."""
    find_task(row.get("task")).check(row, **settings)


def judge(completion: str, solution: Any, task: str, **settings: Any) -> float:
    """The accuracy of one completion in [0, 1]."""
    entry = find_task(task)
    given = {name: settings[name] for name in entry.reads if settings.get(name) is not None}
    return entry.score(completion, solution, **given)


@reward("accuracy", success=True, check=check_row)
def accuracy(
    completions,
    solution,
    task,
    options=None,
    image_size=None,
    resized_size=None,
    *,
    decimals: int = 2,
    strict: bool = False,
    box_format: str | None = None,
    truth_format: str | None = None,
    threshold: float | None = None,
) -> list[float]:
    """Whether the answer is right, by the rule of the row's `task`: choice, numeric, math, box, temporal, ...

    decimals                  numeric: digits after the point that must agree
    strict                    multi_choice: all right options and no other
    box_format, truth_format  box: the coordinate frames of `mmrl.rewards.grounding`
    threshold                 box: 1 from this IoU on, 0 below, instead of the IoU
    """
    settings = {
        "decimals": decimals,
        "strict": strict,
        "box_format": box_format,
        "truth_format": truth_format,
        "threshold": threshold,
    }
    columns = {"options": options, "image_size": image_size, "resized_size": resized_size}
    scores = []
    for i, (completion, right, name) in enumerate(zip(completions, solution, task, strict=True)):
        context = {key: values[i] for key, values in columns.items() if values is not None}
        scores.append(judge(completion, right, name, **settings, **context))
    return scores
