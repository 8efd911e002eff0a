"""What differs between model families, read from the checkpoint's own configuration.

A family is listed here once its positions, masks and log-probs were tested against the plain forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmrl.errors import ConfigError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True)
class Family:
    """Constants of one checkpoint.

    image_token, video_token  placeholder ids, one for each merged patch
    suppressed                ids a policy may never sample: placeholders and vision markers
    patch, merge              a placeholder stands for merge x merge patches of patch x patch pixels
    temporal_patch            frames in one patch
    layer_types               of the text decoder
    soft_cap                  of the final logits, None where the family has none
    """

    model_type: str
    image_token: int
    video_token: int
    suppressed: tuple[int, ...]
    patch: int
    merge: int
    temporal_patch: int
    layer_types: tuple[str, ...]
    soft_cap: float | None = None

    @property
    def factor(self) -> int:
        """Sides of a resized image are multiples of this many pixels."""
        return self.patch * self.merge


def check_family(model_type: str) -> None:
    if model_type not in FAMILIES:
        raise ConfigError(
            f"model type {model_type!r} is not supported: its positions and media inputs were not tested. "
            f"Supported: {', '.join(FAMILIES)}"
        )


def family_of(config: Any, tokenizer: Any) -> Family:
    """Read a model configuration; families that were not tested are refused by name."""
    check_family(config.model_type)
    text, vision = config.get_text_config(), config.vision_config
    known = tokenizer.get_vocab()
    named = {known[token] for token in VISION_TOKENS if token in known}
    configured = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = named | {config_id for name in configured if (config_id := getattr(config, name, None)) is not None}
    return Family(
        model_type=config.model_type,
        image_token=config.image_token_id,
        video_token=config.video_token_id,
        suppressed=tuple(sorted(ids)),
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal_patch=vision.temporal_patch_size,
        layer_types=tuple(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers),
        soft_cap=getattr(text, "final_logit_softcapping", None),
    )
