"""One stretch of an output that has several: what a reward with `of` is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.errors import RewardError
from mmrl.told import Told

EARNED = "action_reward"
"""The column of what each stretch earned."""


def parts_of(outputs: Sequence[Any], of: str | None, label: str) -> Sequence[Any]:
    """`outputs`, or of each the stretch of this name. Raises RewardError where they have none of it."""
    if of is None:
        return outputs
    if other := [output for output in outputs if not isinstance(output, Told)]:
        raise RewardError(
            f"reward {label!r} reads of: {of}, one stretch of an output, and here an output is one "
            f"{type(other[0]).__name__}; `of` is for policies that write and paint in turns (mmrl train joint)"
        )
    try:
        return [output.part(of) for output in outputs]
    except KeyError as error:
        raise RewardError(f"reward {label!r} reads of: {error.args[0]}") from None
