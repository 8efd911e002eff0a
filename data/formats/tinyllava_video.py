"""TinyLLaVA-Video-R1: `problem` with its options inline, `solution` in `<answer>` tags, `video_filename`.

Source: ZhangXJ199/TinyLLaVA-Video-R1, and verl's script for it. Every row is a choice.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, has


def recognise(raw: Raw) -> bool:
    return has(raw, "problem", "video_filename")


FORMAT = Format(
    "tinyllava_video",
    "TinyLLaVA-Video-R1",
    recognise,
    names={"prompt": "problem", "video": "video_filename"},
    defaults={"task": "choice"},
    known_by=("problem", "video_filename"),
)
