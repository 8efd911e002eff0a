"""UniRL: `prompt` or `caption`, `media` (or `media_refs`) of {"modality", "role", "uri"}, labels in `metadata`.

Source: Tencent-Hunyuan/UniRL, unirl/data/datasets.py and README. Media of the role `condition` are what a generator
starts from, those of the role `prompt` are part of the question. GenEval 2's `vqa_list` and `skills` go to rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.data.formats.base import Format, Raw, has
from mmrl.data.sources import RowError
from mmrl.errors import unknown

LEGACY = (
    "prompt_embed_path", "pooled_embed_path", "pooled_prompt_embeds_path", "text_ids_path", "text_ids", "prompt_embeds",
    "pooled_prompt_embeds",
)  # fmt: skip
INPUTS = ("prompt", "image", "images", "video", "videos", "id")  # metadata is for rewards: these never reach the model
KEYS = {"modality", "role", "uri"}
ROLES = {"condition": "condition_", "prompt": ""}


def recognise(raw: Raw) -> bool:
    listed = any(_is_media(raw.get(name)) for name in ("media", "media_refs"))
    named = has(raw, "prompt") or has(raw, "caption")
    return named and (listed or has(raw, "vqa_list") or any(name in raw for name in LEGACY))


def _is_media(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, Mapping) and "modality" in v for v in value) and bool(value)


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    if legacy := [name for name in LEGACY if values.get(name) is not None]:
        raise RowError(legacy[0], "embeddings made beforehand are not read", "give the prompt's text and media")
    labels = values.get("metadata")
    if isinstance(labels, Mapping):
        values = {**{k: v for k, v in labels.items() if k not in INPUTS}, **values}
        if values.get("solution") is None and values.get("answer") is not None:
            values["solution"] = values["answer"]
    listed = values.pop("media", None) or values.pop("media_refs", None) or []
    for place, item in enumerate(listed):
        column, value = _medium(place, item)
        values[column] = [*values.get(column, []), value]
    return values


def _medium(place: int, item: Any) -> tuple[str, Any]:
    if not isinstance(item, Mapping) or {k for k, v in item.items() if v is not None} != KEYS:
        raise RowError("media", f"entry {place}: expected {{'modality', 'role', 'uri'}}, got {item!r:.80}")
    kind, role = (str(item[name]).strip().lower() for name in ("modality", "role"))
    if kind not in ("image", "video"):
        raise RowError("media", f"entry {place}: {unknown('modality', kind, ('image', 'video'))}")
    if role not in ROLES:
        raise RowError("media", f"entry {place}: {unknown('role', role, ROLES)}")
    return f"{ROLES[role]}{kind}s", item["uri"]


FORMAT = Format(
    "unirl",
    "UniRL",
    recognise,
    names={"prompt": "caption"},
    adapt=adapt,
    uses=frozenset({"metadata", "vqa_list", "skills", "media", "media_refs"}),
)
