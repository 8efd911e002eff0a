"""TRL: `prompt` as messages with bare image parts, `image` or `images`, `completion` or `solution`, anything else.

Source: huggingface/trl, docs/source/dataset_formats.md. A `completion` is the truth where there is no `solution`.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, has, is_messages
from mmrl.data.images import describe
from mmrl.data.sources import RowError


def recognise(raw: Raw) -> bool:
    return is_messages(raw.get("prompt")) or (has(raw, "prompt") and "completion" in raw)


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    if "completion" not in values or values.get("solution") is not None:
        return values
    completion = values["completion"]
    if isinstance(completion, list):
        if not is_messages(completion) or [m.get("role") for m in completion] != ["assistant"]:
            said = f"expected one message by 'assistant', got {describe(completion)}"
            raise RowError("completion", said, "turns before the answer belong into the prompt")
        completion = completion[0]["content"]
    return {**{k: v for k, v in values.items() if k != "completion"}, "solution": completion}


FORMAT = Format("trl", "TRL", recognise, adapt=adapt, uses=frozenset({"completion"}), truth="completion")
