"""Video-R1: `path` is an image or a video as `data_type` says; `options` stand apart; `problem_type` names the task.

Source: tulerfeng/Video-R1, src/r1-v/src/open_r1/grpo.py. `process` is a worked answer and is shown to nobody.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, check_type, has, place_by_type, task_of


def recognise(raw: Raw) -> bool:
    return has(raw, "problem", "path", "problem_type")


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    values = place_by_type(values, "path")
    check_type(values)
    if values.get("task") is None and values.get("problem_type"):
        values["task"] = task_of(values["problem_type"])
    return values


FORMAT = Format(
    "video_r1",
    "Video-R1",
    recognise,
    names={"prompt": "problem"},
    adapt=adapt,
    uses=frozenset({"path", "process"}),
    known_by=("problem", "path", "problem_type"),
)
