"""A model as a policy trains it: sizes of images, capabilities, adapters, what is frozen, checkpointing."""

from __future__ import annotations

import re
from typing import Any

from mmrl.errors import ConfigError
from mmrl.policies import adapters
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.families.kept import capabilities_of


def size_images(processor: Any, family: Family, config: LanguagePolicyConfig) -> None:
    """The area that the processor resizes images into, as `min_pixels` and `max_pixels` say."""
    low, high = config.min_pixels, config.max_pixels
    if low is None and high is None:
        return
    size = getattr(processor.image_processor, "size", None)
    edges = {name: getattr(size, name, None) for name in ("shortest_edge", "longest_edge")}
    if isinstance(size, dict):
        edges = {name: size.get(name) for name in edges}
    if family.factor is None or None in edges.values():
        raise ConfigError(
            f"min_pixels, max_pixels: {type(processor.image_processor).__name__} of "
            f"{family.model_type!r} has no range of areas (its size is {size}); leave both null"
        )
    processor.image_processor.size = {
        "shortest_edge": low or edges["shortest_edge"],
        "longest_edge": high or edges["longest_edge"],
    }


def prepared(model: Any, family: Family, config: LanguagePolicyConfig, *, video: bool, seed: int) -> Any:
    """Capabilities found, adapters on, frozen parts frozen, checkpointing as asked.

    video  clips are among what the policy reads; seed  of adapter weights
    """
    if model.config.get_text_config()._attn_implementation != config.attention:
        model.set_attn_implementation(config.attention)
    family.capabilities = capabilities_of(model, family, config.attention, video=video)
    if config.train_vision and not family.capabilities.learns:
        raise ConfigError(
            f"train_vision: no gradient reaches what reads media in {family.model_type!r}, since it turns pictures "
            "into codes; leave it null or false"
        )
    readers = family.readers(model)
    adapted = config.lora is not None or config.adapter is not None
    train_vision = config.train_vision if config.train_vision is not None else not adapted
    if adapted:
        frozen = [*([] if train_vision else readers), *family.not_linear(model)]
        exclude = rf"(.*\.)?({'|'.join(map(re.escape, frozen))})(\..*)?" if frozen else None
        lora = config.lora
        if lora is not None and lora.targets == "all-linear":
            lora = lora.model_copy(update={"targets": family.linear_targets(model)})
        model = adapters.attach_lora(model, lora, seed=seed, start=config.adapter, exclude=exclude)
    elif not train_vision:
        for reader in readers.values():
            reader.requires_grad_(False)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model
