"""MM-Eureka: `message` is a JSON string of chat messages with image parts, `answer` the truth.

Source: ModalMinds/MM-EUREKA, README. Image paths are `file://` addresses.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats.base import Format, Raw, has, messages_in
from mmrl.data.sources import RowError


def recognise(raw: Raw) -> bool:
    return has(raw, "message", "answer") and not has(raw, "prompt")


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    prompt = values.get("prompt")
    if isinstance(prompt, str):
        values["prompt"] = messages_in(prompt)
        if values["prompt"] is None:
            raise RowError("prompt", "expected chat messages as a JSON string", f"it begins {prompt[:40]!r}")
    return values


FORMAT = Format(
    "mm_eureka",
    "MM-Eureka",
    recognise,
    names={"prompt": "message", "solution": "answer"},
    adapt=adapt,
    defaults={"task": "math"},
    known_by=("message", "answer"),
)
