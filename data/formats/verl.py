"""verl: `prompt` as messages, instruction and all, `images` or `videos` as items, the truth in `reward_model`.

Source: verl-project/verl, examples/data_preprocess/geo3k.py and tinyllava_video_r1.py. An item of `videos` may bring
its own `fps`, `max_frames` and so on, as in qwen-vl-utils.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrl.data.formats.base import Format, Raw, has, untagged


def recognise(raw: Raw) -> bool:
    truth = raw.get("reward_model")
    return has(raw, "prompt") and isinstance(truth, Mapping) and truth.get("ground_truth") is not None


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("solution") is None:
        values["solution"] = values["reward_model"].get("ground_truth")
    task = _task(values.get("ability"), untagged(values["solution"]))
    return values if values.get("task") is not None or task is None else {**values, "task": task}


def _task(ability: Any, truth: Any) -> str | None:
    """What the `ability` says; a question-answering row whose truth is one letter is a choice."""
    if ability == "math":
        return "math"
    choice = str(ability).lower().endswith("qa") and isinstance(truth, str) and re.fullmatch(r"[A-J]", truth)
    return "choice" if choice else None


FORMAT = Format("verl", "verl", recognise, adapt=adapt, uses=frozenset({"reward_model", "extra_info"}))
