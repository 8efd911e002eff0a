"""Calling a reward and reading what it returns: the same code in the trainer and in a worker.

Users bring functions unchanged, so the signature is chosen by name, never guessed:

    trl        f(prompts, completions, **columns) -> [number | None | dict]; completions are strings or images;
               it may be an async function
    trl_chat   the same, completions as TRL gives them for chats: [[{"role": "assistant", "content": text}]]
    verl       compute_score(data_source, solution_str, ground_truth, extra_info) -> number | dict, row by row
    easyr1     compute_score([{"response", "ground_truth", ...}]) -> [dict]

Sources: TRL `trl/trainer/grpo_trainer.py`, verl `verl/utils/reward_score/__init__.py`, EasyR1
`verl/workers/reward/function.py`. EasyR1's `response_length` counts tokens, which rewards do not see here: it is
left out, so a function that reads it says so instead of being wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from mmrl.errors import RewardError, unknown
from mmrl.rewards.registry import Columns, Reward, columns_of, takes

Style = Literal["trl", "trl_chat", "verl", "easyr1"]
FLOAT32_END = 2.0**128 - 2.0**103  # from here on numbers round to infinity in float32, as the batch holds them
WHOLE = ""  # the key of a reward that returns a number, not a dictionary


@dataclass
class Inputs:
    """What a reward is called with: N prompts, N completions, columns of N."""

    prompts: list[Any]
    completions: list[Any]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.completions)

    def row(self, i: int) -> Inputs:
        return Inputs([self.prompts[i]], [self.completions[i]], {k: [v[i]] for k, v in self.columns.items()})


@dataclass
class Outcome:
    """What one completion got: numbers by key (NaN where a key has none), why numbers are missing, and lists by key.

    A row without any answer has no values and one problem, under WHOLE.
    """

    values: dict[str, float]
    problems: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list] = field(default_factory=dict)


@dataclass
class Callee:
    """A reward with its options and style applied: `callee(inputs)` gives one Outcome per row."""

    reward: Reward
    columns: Columns
    call: Callable[[Inputs], Any]

    def __call__(self, inputs: Inputs) -> list[Outcome]:
        result = self.call(inputs)
        return outcomes(asyncio.run(result) if inspect.iscoroutine(result) else result, len(inputs))


def prepare(reward: Reward, options: Mapping[str, Any], style: str) -> Callee:
    """Bind options and style. Raises RewardError for an unknown option or style."""
    if style not in get_args(Style):
        raise RewardError(f"reward {reward.name!r}: {unknown('style', style, get_args(Style))}")
    columns = columns_of(reward.function, options, reward.name)
    function = partial(reward.function, **options) if options else reward.function
    if style in ("verl", "easyr1"):
        adapter = _call_verl if style == "verl" else _call_easyr1
        return Callee(reward, Columns(("solution",), everything=True), partial(adapter, function))
    inputs = [name for name in ("prompts", "completions") if takes(reward.function, name)]
    return Callee(reward, columns, partial(_call_trl, function, inputs, style == "trl_chat"))


def _call_trl(function: Callable, names: Sequence[str], chat: bool, inputs: Inputs) -> Any:
    completions = inputs.completions
    if chat:
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    given = {"prompts": inputs.prompts, "completions": completions}
    return function(**{name: given[name] for name in names}, **inputs.columns)


def _call_verl(function: Callable, inputs: Inputs) -> list[Any]:
    """One call a row: `solution` is the ground truth, `data_source` (or `task`) the source."""
    scores = []
    for i, completion in enumerate(inputs.completions):
        row = {key: values[i] for key, values in inputs.columns.items()}
        scores.append(
            function(
                data_source=row.get("data_source", row.get("task")),
                solution_str=completion,
                ground_truth=row["solution"],
                extra_info=row.get("extra_info", row),
            )
        )
    return scores


def _call_easyr1(function: Callable, inputs: Inputs) -> Any:
    rows = []
    for i, completion in enumerate(inputs.completions):
        row = {key: values[i] for key, values in inputs.columns.items()}
        rows.append({**row, "response": completion, "ground_truth": row["solution"]})
    return function(rows)


def outcomes(result: Any, count: int) -> list[Outcome]:
    """Read what a reward returned for `count` rows; raises ValueError when it is not `count` values."""
    if hasattr(result, "tolist"):  # numpy arrays and torch tensors
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise ValueError(f"returned {type(result).__name__}, expected a list of {count} values")
    if len(result) != count:
        raise ValueError(f"returned {len(result)} values for {count} completions")
    return [_outcome(value) for value in result]


def _outcome(value: Any) -> Outcome:
    if not isinstance(value, Mapping):
        number, problem = read_number(value)
        return Outcome({}, {WHOLE: problem}) if problem else Outcome({WHOLE: number})
    if not value:
        return Outcome({}, {WHOLE: "an empty dictionary"})
    lists = {str(key): listed for key, each in value.items() if (listed := as_list(each)) is not None}
    read = {str(key): read_number(each) for key, each in value.items() if str(key) not in lists}
    return Outcome(
        {key: number for key, (number, _) in read.items()},
        {key: problem for key, (_, problem) in read.items() if problem},
        lists,
    )


def as_list(value: Any) -> list | None:
    """Numbers or spans of one row, such as `[0, 1, 1]` or `[[3, 9]]`; None for what is a single number."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def read_number(value: Any) -> tuple[float, str]:
    """(number, "") or (NaN, why): None, NaN, infinities, what float32 cannot hold, and what is no number.

    A reward may give an exception in a row's place: its message is why that row alone has no number.
    """
    if value is None:
        return math.nan, "None"
    if isinstance(value, Exception):
        return math.nan, " ".join(str(value).split()) or type(value).__name__
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        try:
            value = value.item()
        except (RuntimeError, ValueError):
            return math.nan, f"{type(value).__name__}, not a number"
    if not isinstance(value, bool | int | float):
        return math.nan, f"{type(value).__name__}, not a number"
    if isinstance(value, int) and abs(value) >= FLOAT32_END:  # may be too large for a float, too
        return math.nan, "an integer infinite in float32"
    if math.isnan(value):
        return math.nan, "NaN"
    if math.isinf(value):
        return math.nan, "infinite"
    return (float(value), "") if abs(value) < FLOAT32_END else (math.nan, f"{value:.3g}, infinite in float32")
