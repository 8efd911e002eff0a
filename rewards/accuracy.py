"""Accuracy: the column `task` says how an answer is judged, by one of the kinds in `mmrl.rewards.kinds`.

An unknown task, or a truth its scorer cannot read, is an error that names the row: nothing falls back to text
similarity. Rules and their sources are in the scorers' own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import TASKS as TASKS
from mmrl.rewards.tasks import Task, Verdict, find_task, guarded, load, task_name

load()


def check_row(row: Mapping[str, Any], *, tasks: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any) -> None:
    """Raise RewardError if no answer to this row could be judged."""
    entry = find_task(task_name(row))
    entry.check(row, **settings, **_own(entry, tasks))


def verdict(completion: str, solution: Any, task: str, prompt: Any = "", **settings: Any) -> Verdict:
    """What one completion is worth: its score, whether it could be read, and the named parts of its kind."""
    entry = find_task(task)
    given = {name: settings[name] for name in entry.reads if settings.get(name) is not None}
    return guarded(entry.judge, prompt, completion, solution, given)


def judge(completion: str, solution: Any, task: str, **settings: Any) -> float:
    """The accuracy of one completion in [0, 1]."""
    return verdict(completion, solution, task, **settings).score


def _own(entry: Task, tasks: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """The settings for this task. RewardError for a task or setting that does not exist."""
    own: dict[str, Any] = {}
    for name, settings in (tasks or {}).items():
        reads = find_task(name).reads
        if wrong := [each for each in settings if each not in reads]:
            raise RewardError(f"tasks: {name}: {unknown('setting', wrong[0], reads)}")
        own |= settings if find_task(name) is entry else {}
    return own


@reward("accuracy", success=True, check=check_row)
def accuracy(
    completions,
    solution,
    task,
    options=None,
    image_size=None,
    resized_size=None,
    prompts=None,
    *,
    decimals: int = 2,
    strict: bool = False,
    box_format: str | None = None,
    truth_format: str | None = None,
    threshold: float | None = None,
    tasks: dict[str, dict[str, Any]] | None = None,
) -> list[dict[str, float]]:
    """Whether the answer is right, by the rule of the row's `task`: choice, numeric, math, box, ocr, table, gui, ...

    decimals                  numeric: digits after the point that must agree
    strict                    multi_choice: all right options and no other
    box_format, truth_format  box: the coordinate frames of `mmrl.rewards.grounding`
    threshold                 box: 1 from this IoU on, 0 below, instead of the IoU
    tasks                     {task: {setting: value}}: options of the reward of that name, as {ocr: {metric: anls}}
    Beside the score, a row has `parsed`, 1 where an answer of its kind was found, and the parts of its kind.
    """
    settings = {
        "decimals": decimals,
        "strict": strict,
        "box_format": box_format,
        "truth_format": truth_format,
        "threshold": threshold,
    }
    columns = {"options": options, "image_size": image_size, "resized_size": resized_size}
    asked = prompts if prompts is not None else [""] * len(completions)
    scores = []
    for i, (prompt, completion, right, name) in enumerate(zip(asked, completions, solution, task, strict=True)):
        context = {key: values[i] for key, values in columns.items() if values is not None}
        own = _own(find_task(name), tasks)
        scores.append(verdict(completion, right, name, prompt, **settings, **context, **own).components())
    return scores
