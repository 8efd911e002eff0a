"""Columns that rewards and data sets make, from what they say of each output to tensors of the rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.columns import COLUMNS, Column
from mmrl.errors import DataError
from mmrl.policies.base import Policy
from mmrl.record import Prompt, Rollouts, Scores
from mmrl.rollout.nesting import Nested
from mmrl.training.evaluation import Score

Readers = Mapping[str, Sequence[str]]


def attach_columns(rollouts: Rollouts, scores: Scores, policy: Policy) -> Counter:
    """Put `scores.columns` into the rollouts. Rows whose values do not fit are unscored: why, and how many."""
    causes: Counter = Counter()
    for name, values in scores.columns.items():
        lists = any(isinstance(v, list | tuple) for v in values)
        column = COLUMNS.get(name, Column(name, "(B, T)" if lists else "(B,)", ""))
        shape = rollouts.mask.shape if column.per_action else rollouts.mask.shape[:1]
        made = torch.full(shape, float(column.fill))
        for row, value in enumerate(values):
            try:
                if value is not None:
                    made[row] = _per_action(column, value, rollouts, row, policy) if column.per_action else value
            except (TypeError, ValueError) as error:
                causes[f"{name}: {error}"] += 1
                rollouts.reward[row] = float("nan")
        made = torch.where(made.isnan(), column.fill, made)
        rollouts.columns[name] = (made.long() if column.fill < 0 else made).to(rollouts.mask.device)
    return causes


def _per_action(column: Column, value: Any, rollouts: Rollouts, row: int, policy: Policy) -> Tensor:
    """(T,) from one number for each action, or from spans of characters; raises ValueError where neither fits. The
    number of a span stands on each of its actions, of a column that adds up on the last. An action that writes no
    text, such as the end token, is part of what stands before it, in columns that number parts."""
    made = torch.full(rollouts.mask.shape[1:], float(column.fill))
    if not isinstance(value, list | tuple):
        raise ValueError(f"a {type(value).__name__}; expected a list, of one number for each action or of spans")
    acted = rollouts.mask[row].nonzero().squeeze(1).cpu()
    if value and not isinstance(value[0], list | tuple):
        if len(value) != len(acted):
            raise ValueError(f"{len(value)} numbers for {len(acted)} actions")
        made[acted] = torch.tensor([float(v) for v in value])
        return made
    written = policy.character_spans(rollouts, row) if value else []
    for span in value:
        if len(span) not in (2, 3) or not 0 <= span[0] <= span[1] <= len(rollouts.outputs[row]):
            raise ValueError("a span that is not [start, end] or [start, end, value] inside the output")
        inside = [t for t, (start, end) in enumerate(written) if start < span[1] and end > span[0]]
        number = float(span[2]) if len(span) == 3 else 1.0
        if column.added:
            made[inside[-1:]] += number
        else:
            made[inside] = number
    if column.fill < 0:
        for t, (start, end) in enumerate(written):
            if start == end and t:
                made[t] = made[t - 1]
    return made


def with_numbers(score: Score, names: Sequence[str]) -> Score:
    """`score`, with these columns of the data set among the columns it makes."""
    if not names:
        return score

    def scored(outputs: list, prompts: list[Prompt]) -> Scores:
        scores = score(outputs, prompts)
        numbers = {name: [_number(p, name) for p in prompts] for name in names}
        return replace(scores, columns={**scores.columns, **numbers})

    return scored


def _number(prompt: Prompt, name: str) -> float:
    value = prompt.columns.get(name)
    if isinstance(value, bool | int | float):
        return float(value)
    raise DataError(f"prompt {prompt.id!r}: data.numbers names {name!r}, expected a number there, got {value!r}")


def check_data(prompts: Sequence[Prompt], numbers: Sequence[str], strategies: Nested, readers: Readers) -> None:
    """Refuse, when the data is opened, columns that its first rows do not have.

    numbers     must be a number in every row; `readers` says of each which functions read it
    strategies  what they read (`data_columns`) must be in some row
    """
    seen = f"of the first {len(prompts)} rows of the data set"
    for name in numbers:
        have = sum(isinstance(p.columns.get(name), bool | int | float) for p in prompts)
        if have < len(prompts):
            raise DataError(
                f"{name}: a number in {have} {seen}, and {' and '.join(readers.get(name, ['nobody']))} reads it of "
                "every row; add it, or take it out of data.numbers"
            )
    for bound in strategies.bounds:
        for name in getattr(bound.state, "data_columns", ()):
            if not any(p.columns.get(name) for p in prompts):
                raise DataError(f"{name}: in 0 {seen}, and rollout {bound.name!r} reads it; add it, or name another")
