"""verl: `prompt` as messages, instruction and all, `images` or `videos` as items, the truth in `reward_model`.

Source: verl-project/verl, examples/data_preprocess/geo3k.py and tinyllava_video_r1.py. An item of `videos` may bring
its own `fps`, `max_frames` and so on, as in qwen-vl-utils. `reward_model` may be a mapping or a string that holds one;
one without a `ground_truth` leaves the row without a solution, which a reward that reads it refuses.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from mmrl.data.formats.base import Format, Raw, has, untagged
from mmrl.data.sources import RowError


def recognise(raw: Raw) -> bool:
    return has(raw, "prompt") and "reward_model" in raw


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    judged = _mapping(values["reward_model"])
    if values.get("solution") is None and "ground_truth" in judged:
        values["solution"] = judged["ground_truth"]
    task = _task(values.get("ability"), untagged(values.get("solution")))
    return values if values.get("task") is not None or task is None else {**values, "task": task}


def _mapping(reward_model: Any) -> Mapping[str, Any]:
    """What `reward_model` says: a mapping, or a string that holds one as JSON or as Python prints it."""
    value = reward_model
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if value is not None and not isinstance(value, Mapping):
        raise RowError("reward_model", f"expected {{'ground_truth': ...}}, got {reward_model!r:.80}")
    return value or {}


def _task(ability: Any, truth: Any) -> str | None:
    """What the `ability` says; a question-answering row whose truth is one letter is a choice."""
    if ability == "math":
        return "math"
    choice = str(ability).lower().endswith("qa") and isinstance(truth, str) and re.fullmatch(r"[A-J]", truth)
    return "choice" if choice else None


FORMAT = Format(
    "verl",
    "verl",
    recognise,
    adapt=adapt,
    uses=frozenset({"reward_model", "extra_info"}),
    truth="reward_model.ground_truth",
)
