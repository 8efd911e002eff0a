"""Edits: a generator's prompt with the `image` it changes, and often GenEval's columns for the result.

Source: yifan123/flow_grpo, dataset/counting_edit. The image is a condition of the generator, not a picture to ask
about: its part of the message has the role `condition`.
"""

from __future__ import annotations

from typing import Any

from mmrl.data.formats import geneval
from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    pictured = has(raw, "image") or has(raw, "images")
    return has(raw, "prompt") and pictured and (has(raw, "t2i_prompt") or geneval.recognise(raw))


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    return geneval.adapt(values) if geneval.recognise(values) else values


FORMAT = Format(
    "flow_edit",
    "flow_grpo edits",
    recognise,
    names={"condition_image": "image", "condition_images": "images"},
    adapt=adapt,
    uses=geneval.FORMAT.uses,
)
