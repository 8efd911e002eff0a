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
    answer   what is read as an answer, for the documentation
    truth    what a `solution` may look like, for the documentation
    """

    score: Callable[..., float]
    check: Callable[..., Any]
    valid: Callable[[str], bool]
    answer: str
    truth: str
    aliases: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


BOX_SETTINGS = ("box_format", "truth_format", "image_size", "resized_size")
NUMBERS = (
    "one number: any dash, `minus`, currency, `1,234.5`, `1.234,5`, `1 234`, `3/4`, `1 1/2`, "
    "`\\frac{1}{2}`, `1½`, `10^6`, "
    "`3×10⁶`, `5k`, `3.2 million`, `twenty-three`, `2π`, `√2`, `50%`, a unit behind it, if not another than the "
    "truth's; not sums, ranges, bounds, `not 5`"
)
TRUE_NUMBER = "the same, or a number; `50%` is answered by `50%`, `50` and `.5`, a share of at most 1 by `50%`, too"
BOXES = (
    "`[x1, y1, x2, y2]`, `(x1, y1), (x2, y2)`, JSON with `bbox_2d`, `bbox`, `box` or `x1`/`xmin`/`left` ..., "
    "`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, `<box>[[...]]</box>`, "
    '`<loc....>` and `box_2d` (y before x); `[]` or "there is no ..." for nothing to find'
)
TRUE_BOXES = "the same, as text or JSON; `[]` or `none`: there is nothing to find. Boxes need an area"


def _is_option(answer: str) -> bool:
    return chosen(answer, Options()) is not None


def _is_number(answer: str) -> bool:
    return number(answer) is not None


def _is_boxes(answer: str) -> bool:
    return bool(boxes(answer)) or says_none(answer)


TASKS: dict[str, Task] = {
    "exact": Task(
        text.exact,
        checks(text.true_texts),
        bool,
        "the text; case, spacing, kinds of quotes and final punctuation do not matter",
        "a text or number; a list means any of these",
        ("exact_match", "text"),
    ),
    "choice": Task(
        choice.single,
        checks(true_option, "options"),
        _is_option,
        "the option finally stated: `B`, `(b)`, `B. dog`, `The answer is B`, `B is correct`, its text; not `A or B`, "
        "`not B`, or a walk through the options",
        "a letter, `B. dog`, the option's text, or an integer counting from 0; `options` as list, "
        "mapping, JSON or lines",
        ("multiple_choice", "mcq", "single_choice"),
        ("options",),
    ),
    "multi_choice": Task(
        choice.several,
        checks(choice.true_options, "options"),
        lambda a: bool(several(a, Options())),
        'the options finally stated: `A, C`, `AC`, `(A) and (C)`, `["A", "C"]`, or their texts',
        "the same as text, or a list of letters, texts or integers from 0",
        ("multi_answer", "multiple_answer_choice"),
        ("options", "strict"),
    ),
    "boolean": Task(
        choice.yes_no,
        checks(true_boolean),
        lambda a: boolean(a) is not None,
        "`yes`, `true`, `1` or `no`, `false`, `0`; `not true` is no; `yes or no` and `no idea` are neither",
        "the same, or true and false",
        ("yes_no", "judge"),
    ),
    "numeric": Task(
        numeric.equal,
        checks(numeric.true_number),
        _is_number,
        NUMBERS,
        TRUE_NUMBER,
        ("numerical", "number", "count", "counting"),
        ("decimals",),
    ),
    "regression": Task(
        numeric.mean_relative_accuracy, checks(numeric.true_number), _is_number, NUMBERS, TRUE_NUMBER, ("mra",)
    ),
    "math": Task(
        expressions.mathematics,
        checks(expressions.true_expression),
        bool,
        "a tagged or boxed expression, by math-verify; words as words; `(1, 2)` keeps its order, "
        "`\\{1, 2\\}` and `1, 2` do "
        "not; `x = 5` is 5; towers such as `10^{10^{10}}` are not computed and are wrong",
        "LaTeX, a number or a text",
        ("mathematics",),
    ),
    "temporal": Task(
        temporal.when,
        checks(temporal.true_interval),
        lambda a: interval(a) is not None,
        "one interval in seconds: `2 to 8`, `01:10 - 01:20.5`, `2 to 3 minutes`, `1m30s until 2m`, `[2, 8]`, JSON with "
        "`time`, `start`/`end`, `start_time`/`end_time`, `timestamps`, `relevant_windows`; not "
        "frames, negative times, NaN",
        "the same, as text or JSON, start before end",
        ("temporal_grounding", "temporal_iou"),
    ),
    "box": Task(
        grounding.where,
        grounding.check_boxes,
        _is_boxes,
        BOXES + "; several for a single true one are wrong",
        TRUE_BOXES,
        ("spatial_grounding", "grounding", "bbox", "rec"),
        (*BOX_SETTINGS, "threshold"),
    ),
    "boxes": Task(
        lambda completion, solution, **settings: grounding.where(completion, solution, every=True, **settings),
        grounding.check_boxes,
        _is_boxes,
        BOXES + "; more than 8, and more than four for each true one, are a wall and wrong",
        TRUE_BOXES,
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
