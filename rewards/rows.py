"""From what rewards returned to columns of numbers: rows that failed are NaN, and counted by cause."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.errors import RewardError
from mmrl.record import Prompt
from mmrl.rewards.calls import WHOLE, Inputs, Outcome
from mmrl.rewards.pool import CallFailed
from mmrl.rewards.registry import Columns
from mmrl.rewards.tasks import task_name

MOST_CAUSES = 8  # different messages kept apart for one reward; beyond them only the kind is kept
LONGEST_CAUSE = 120
REFERENCE = "reference"  # the images an edit or a video starts from, opened; a column of that name comes first
MEDIA = ("images", "videos", REFERENCE)  # what rewards may read of every prompt besides its columns


class Refused(Exception):
    """A reward said that row `row` can never be scored: a mistake in the dataset or configuration."""

    def __init__(self, row: int, message: str):
        super().__init__(message)
        self.row = row


@dataclass
class RowScores:
    """One Outcome per row, and the end of the last traceback seen."""

    outcomes: list[Outcome]
    traceback: str = ""


def gather_inputs(label: str, columns: Columns, outputs: Sequence[Any], prompts: Sequence[Prompt]) -> Inputs:
    """What a reward is called with: the columns it names, and prompts as messages, or as text for generators.

    Of a generator's prompts `reference` holds the condition images as PIL images, one list for all rows of a prompt.
    """
    text = all(isinstance(output, str) for output in outputs)
    optional = [n for n in columns.optional if all(n in _names(p, generated=not text) for p in prompts)]
    names = [*columns.required, *optional]
    if columns.everything and prompts:
        shared = set.intersection(*(set(prompt.columns) for prompt in prompts))
        names += sorted(shared - set(names))
    opened: dict[int, dict[str, Any]] = {}
    for prompt in prompts:
        if id(prompt) not in opened:
            opened[id(prompt)] = row_values(label, prompt, names)
    rows = [opened[id(prompt)] for prompt in prompts]
    return Inputs(
        prompts=[prompt.messages if text else prompt.text for prompt in prompts],
        completions=list(outputs),
        columns={name: [row[name] for row in rows] for name in names},
    )


def row_values(label: str, prompt: Prompt, names: Sequence[str]) -> dict[str, Any]:
    """These columns of a prompt; RewardError names the prompt and the column it lacks."""
    offered = _names(prompt)
    for name in names:
        if name == REFERENCE and name not in offered:
            raise RewardError(
                f"reward {label!r} reads `reference`, the images that an output starts from, and prompt {prompt.id!r} "
                "has none; it is for edits and video from images"
            )
        if name not in offered:
            one_for_all = ", data.task=choice one task for all rows" if name == "task" else ""
            raise RewardError(
                f"reward {label!r} reads the column {name!r}, which prompt {prompt.id!r} does not have; its columns: "
                f"{', '.join(sorted(prompt.columns)) or 'none'}; data.columns.{name}=YOURS names one{one_for_all}"
            )
    return {name: _value(label, prompt, name) for name in names}


def _names(prompt: Prompt, generated: bool = True) -> set[str]:
    """What a prompt offers; a truth read without its messages may belong to a row that has images."""
    media = set(MEDIA) if generated and prompt.images else set(MEDIA) - {REFERENCE}
    return media | set(_columns(prompt)) | ({REFERENCE} if not prompt.messages else set())


def _columns(prompt: Prompt) -> dict[str, Any]:
    """Its id and its columns; `task` also under a data set's other names."""
    task = task_name(prompt.columns)
    return {"prompt_id": prompt.id} | prompt.columns | ({} if task is None else {"task": task})


def _value(label: str, prompt: Prompt, name: str) -> Any:
    columns = _columns(prompt)
    if name in columns:
        return columns[name]
    if name != REFERENCE:
        return getattr(prompt, name)
    from mmrl.policies.images import open_image

    return [open_image(image, prompt) for image in prompt.images]


def is_blank(value: Any) -> bool:
    """Null, NaN, or text of white space: what no reward can read. An empty list may say "there is none"."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def score_rows(
    call: Callable[[Inputs], list[Outcome]], inputs: Inputs, most: int, budget: float = math.inf
) -> RowScores:
    """Call a reward on all rows; if that fails, row by row, so that only the rows at fault are lost.

    most    failed rows after which the rest is given up: the run is about to stop, and a reward that hangs on every row
            should not keep it waiting
    budget  seconds after which no further row is tried, so that hanging rows cost a step one budget, not one time limit
            each
    """
    began = time.monotonic()
    if not len(inputs):
        return RowScores([])
    try:
        return RowScores(call(inputs))
    except RewardError as error:
        if len(inputs) == 1:
            raise Refused(0, str(error)) from None
    except CallFailed as failed:
        if len(inputs) == 1:
            return RowScores([_failed(failed.cause)], failed.traceback)
    scores = RowScores([])
    lost = 0
    for i in range(len(inputs)):
        if lost >= most:
            scores.outcomes.append(_failed("not tried after too many failures"))
            continue
        if time.monotonic() - began > budget:
            scores.outcomes.append(_failed(f"not tried: its budget of {budget:g} s was spent"))
            continue
        try:
            scores.outcomes += call(inputs.row(i))
        except RewardError as error:
            raise Refused(i, str(error)) from None
        except CallFailed as failed:
            lost += 1
            scores.outcomes.append(_failed(failed.cause))
            scores.traceback = failed.traceback or scores.traceback
    return scores


def _failed(cause: str) -> Outcome:
    return Outcome({}, {WHOLE: cause})


def keys_of(outcomes: Sequence[Outcome]) -> list[str]:
    """The keys of all answers, in order of appearance."""
    return list(dict.fromkeys(key for outcome in outcomes for key in outcome.values))


def key_column(outcomes: Sequence[Outcome], key: str) -> list[float]:
    """One number a row, NaN where the reward gave none under this key."""
    return [outcome.values.get(key, math.nan) for outcome in outcomes]


def made_column(outcomes: Sequence[Outcome], name: str) -> tuple[list[Any], list[str]]:
    """What each row's answer holds under the key of a declared column, None where it has nothing, and why not."""
    values = [
        None if failure_of(outcome, name) else outcome.lists.get(name, outcome.values.get(name)) for outcome in outcomes
    ]
    return values, [problem_of(o, name) if value is None else "" for o, value in zip(outcomes, values, strict=True)]


def problem_of(outcome: Outcome, key: str) -> str:
    """Why a row has no number under `key`; "" if it has one."""
    if WHOLE in outcome.problems:
        return outcome.problems[WHOLE]
    return outcome.problems.get(key, "" if key in outcome.values else "missing")


def failure_of(outcome: Outcome, key: str) -> str:
    """Why a row that was to have a number under `key` has none; "" too where it need not have one, missing or None."""
    problem = outcome.problems.get(key, "")
    return "" if problem == "None" else problem


def first_failure(outcome: Outcome) -> str:
    """Why some part of a row failed; "" where all of them are there, missing or None, as other tasks' parts are."""
    return next((problem for problem in outcome.problems.values() if problem != "None"), "")


def count_causes(label: str, problems: Iterable[str]) -> Counter:
    """`{"accuracy: timeout": 3}`; empty problems are rows that were scored."""
    problems = list(problems)
    causes = Counter(f"{label}: {_shorten(problem)}" for problem in problems if problem)
    if len(causes) <= MOST_CAUSES:
        return causes
    return Counter(f"{label}: {problem.partition(':')[0]}" for problem in problems if problem)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_CAUSE else text[: LONGEST_CAUSE - 3] + "..."
