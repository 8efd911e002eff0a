"""Edits: a generator's prompt with the `image` it changes, and often GenEval's columns for the result.

Source: yifan123/flow_grpo, dataset/counting_edit. The image is a condition of the generator, not a picture to ask
about: its part of the message has the role `condition`.
"""

from __future__ import annotations

from mmrl.data.formats import geneval
from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    pictured = has(raw, "image") or has(raw, "images")
    return has(raw, "prompt") and pictured and (has(raw, "t2i_prompt") or geneval.recognise(raw))


FORMAT = Format(
    "flow_edit",
    "flow_grpo edits",
    recognise,
    names={"condition_image": "image", "condition_images": "images"},
    uses=geneval.FORMAT.uses,
)
