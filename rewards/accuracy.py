"""Accuracy: the column `task` says how an answer is judged.

An unknown task, or a truth its scorer cannot read, is an error that names the row: nothing falls back to text
similarity. Rules and their sources are in the scorers' own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers, choice, grounding, numeric, temporal, text
from mmrl.rewards.registry import reward

CONTEXT = ("options", "image_size", "resized_size")  # columns some scorers read


@dataclass(frozen=True)
class Task:
    """How answers of one kind are judged.

    score    (completion, solution, **context) -> number in [0, 1]
    valid    whether the text of an answer has the right type, right or wrong; read by graded format
    aliases  other names of the same task
    reads    which settings of the row or of the reward `score` takes
    check    raises RewardError for a solution that cannot be read; None: any text will do
    """

    score: Callable[..., float]
    valid: Callable[[str], bool]
    aliases: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    check: Callable[[Any], Any] | None = None


BOX_SETTINGS = ("box_format", "truth_format", "image_size", "resized_size")


def _any_text(answer: str) -> bool:
    return bool(answer)


TASKS: dict[str, Task] = {
    "exact": Task(text.exact, _any_text, ("exact_match", "text")),
    "choice": Task(
        choice.single,
        lambda a: answers.option_letter(a) is not None,
        ("multiple_choice", "mcq", "single_choice"),
        ("options",),
    ),
    "multi_choice": Task(
        choice.several,
        lambda a: bool(answers.option_letters(a)),
        ("multi_answer", "multiple_answer_choice"),
        ("strict",),
        lambda s: choice.several("", s),
    ),
    "boolean": Task(
        choice.yes_no, lambda a: answers.boolean(a) is not None, ("yes_no", "judge"), (), lambda s: choice.yes_no("", s)
    ),
    "numeric": Task(
        numeric.equal,
        lambda a: answers.number(a) is not None,
        ("numerical", "number", "count", "counting"),
        ("decimals",),
        lambda s: numeric.equal("", s),
    ),
    "regression": Task(
        numeric.mean_relative_accuracy,
        lambda a: answers.number(a) is not None,
        ("mra",),
        (),
        lambda s: numeric.mean_relative_accuracy("", s),
    ),
    "math": Task(numeric.mathematics, _any_text, ("mathematics",)),
    "temporal": Task(
        temporal.when,
        lambda a: temporal.interval(a) is not None,
        ("temporal_grounding", "temporal_iou"),
        (),
        temporal.true_interval,
    ),
    "box": Task(
        grounding.where,
        lambda a: bool(grounding.boxes(a)),
        ("spatial_grounding", "grounding", "bbox", "rec"),
        (*BOX_SETTINGS, "threshold"),
        grounding.true_boxes,
    ),
    "boxes": Task(
        lambda completion, solution, **settings: grounding.where(completion, solution, every=True, **settings),
        lambda a: bool(grounding.boxes(a)) or isinstance(answers.json_value(a), list),
        ("detection", "multi_box"),
        BOX_SETTINGS,
        grounding.true_boxes,
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
    task = find_task(row.get("task"))
    if task.check:
        try:
            task.check(row.get("solution"))
        except RewardError as error:
            raise RewardError(str(error), column="solution") from None
    frames = settings.get("box_format"), settings.get("truth_format")
    if "box_format" in task.reads and all(frames) and frames[0] != frames[1]:
        for frame in frames:
            grounding.to_shares((0, 0, 1, 1), frame, {name: row.get(name) for name in CONTEXT})


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
