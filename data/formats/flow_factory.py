"""Flow-Factory: `prompt`, `negative_prompt`, and `image`, `images`, `video`, `videos` the generator starts from.

Source: X-GenGroup/Flow-Factory, README. Paths start from the folders `images` and `videos` beside the file. A row
shows what it is by its `negative_prompt`; the others of its file are read like it.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, has

COLUMNS = ("image", "images", "video", "videos")


def recognise(raw: Raw) -> bool:
    return isinstance(raw.get("prompt"), str) and isinstance(raw.get("negative_prompt"), str) and not _answered(raw)


def admits(raw: Raw) -> bool:
    return isinstance(raw.get("prompt"), str) and not _answered(raw)


def _answered(raw: Raw) -> bool:
    return has(raw, "solution") or has(raw, "task") or has(raw, "include")


FORMAT = Format(
    "flow_factory",
    "Flow-Factory",
    recognise,
    names={f"condition_{name}": name for name in COLUMNS},
    uses=frozenset({"negative_prompt"}),
    folders={"image": "images", "video": "videos"},
    admits=admits,
)
