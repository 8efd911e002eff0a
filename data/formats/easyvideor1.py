"""EasyVideoR1: `problem`, `answer` (text, number or list), `videos` or `images`, `data_type`, types, options.

Source: cyuQ1n/EasyVideoR1, README and examples/unified_rl/reward_function/unified.py, which names the types.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, check_type, has, task_of


def recognise(raw: Raw) -> bool:
    return has(raw, "problem", "problem_type") and "answer" in raw and not has(raw, "path")


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    check_type(values)
    if values.get("task") is None and values.get("problem_type"):
        values["task"] = task_of(values["problem_type"])
    return values


FORMAT = Format(
    "easyvideor1",
    "EasyVideoR1",
    recognise,
    names={"prompt": "problem", "solution": "answer"},
    adapt=adapt,
    known_by=("problem", "answer", "problem_type"),
)
