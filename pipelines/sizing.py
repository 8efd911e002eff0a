"""How the model of a run sizes images, read from the checkpoint's processor before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmrl.data.images import Sizing
from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.sides import looking_side

FILES = ("processor_config.json", "preprocessor_config.json")
KNOWN = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast")
"""Processors whose arithmetic `Sizing` is. With others `resized_size` is unknown, and rewards that read it say so."""


def image_sizing(config: RunConfig) -> Sizing | None:
    """None for generators, for a model that is not named or not here yet, and for processors of another kind."""
    config = looking_side(config)
    if "image" not in config.policy_class.reads or not config.policy.get("model"):
        return None
    settings = config.policy_settings()
    if not hasattr(settings, "min_pixels"):  # a policy of the user's own
        return None
    held = next((found for name in FILES if (found := _read(settings.model, name))), {})
    processor = held.get("image_processor", held)
    if processor.get("image_processor_type") not in KNOWN:
        return None
    bounds = processor.get("size") or {}
    low = settings.min_pixels or bounds.get("shortest_edge") or processor["min_pixels"]
    high = settings.max_pixels or bounds.get("longest_edge") or processor["max_pixels"]
    return Sizing(processor["patch_size"] * processor["merge_size"], low, high)


def _read(model: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a checkpoint: of a folder, or of the hub, fetched as the policy will fetch it."""
    path = Path(model) / name
    if not Path(model).is_dir():
        from transformers.utils import cached_file

        quiet = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
        found = cached_file(model, name, **{f"_raise_exceptions_for_{kind}": value for kind, value in quiet.items()})
        if found is None:
            return None
        path = Path(found)
    return json.loads(path.read_text()) if path.is_file() else None
