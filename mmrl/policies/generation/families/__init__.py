"""Generator families by the class of their pipeline; a pipeline that none is named for is replayed (`swap`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmrl.errors import ConfigError

if TYPE_CHECKING:
    from mmrl.policies.generation.families.asking import Asked
    from mmrl.policies.generation.families.base import Generator

FAMILIES = {
    "StableDiffusion3Pipeline": "sd3:StableDiffusion3",
    "FluxPipeline": "flux:Flux",
    "FluxKontextPipeline": "flux_kontext:FluxKontext",
    "Flux2Pipeline": "flux2:Flux2",
    "Flux2KleinPipeline": "flux2:Flux2Klein",
    "QwenImagePipeline": "qwen_image:QwenImage",
    "QwenImageEditPipeline": "qwen_image:QwenImageEdit",
    "QwenImageEditPlusPipeline": "qwen_image:QwenImageEditPlus",
    "ZImagePipeline": "z_image:ZImage",
    "SanaPipeline": "sana:Sana",
    "ChromaPipeline": "chroma:Chroma",
    "Lumina2Pipeline": "lumina2:Lumina2",
    "CogView4Pipeline": "cogview4:CogView4",
    "WanPipeline": "wan:Wan",
    "WanImageToVideoPipeline": "wan:wan_image",
    "LTXPipeline": "ltx:LTX",
    "LTXImageToVideoPipeline": "ltx:LTXImage",
    "HunyuanVideoPipeline": "hunyuan:HunyuanVideo",
    "HunyuanVideo15Pipeline": "hunyuan:HunyuanVideo15",
    "StableAudio3Pipeline": "stable_audio:StableAudio3",
}
"""Class of a diffusers pipeline: file and class here, or a function of the pipeline that chooses the class."""


def refuse_other_kinds(listed: Mapping[str, Any], given: bool = False) -> None:
    """ConfigError for a pipeline that no flow policy can train, from its `model_index.json`, before anything loads.

    given  whether its transformer comes from elsewhere
    """
    there = {name for name, kind in listed.items() if isinstance(kind, list | tuple) and kind and kind[0] is not None}
    there |= {"transformer"} if given or "transformer_2" in there else set()
    if missing := [name for name in ("transformer", "scheduler") if name not in there]:
        raise ConfigError(
            f"model: {listed.get('_class_name')} has no {' and no '.join(missing)}, it has {', '.join(sorted(there))}; "
            f"the flow policy trains flow-matching pipelines of diffusers, such as {', '.join(list(FAMILIES)[:3])}"
        )


def family_of(pipeline: Any) -> type[Generator]:
    """The family of a pipeline, by its exact class: a subclass may denoise in another way."""
    place = FAMILIES.get(type(pipeline).__name__, "swap:Swapped")
    file, _, name = place.partition(":")
    found = getattr(import_module(f"{__name__}.{file}"), name)
    return found if isinstance(found, type) else found(pipeline)


def generator_of(pipeline: Any, asked: Asked) -> Generator:
    """The generator that asks `pipeline` as the configuration says."""
    transformer = getattr(pipeline, "transformer", None)
    if not hasattr(transformer, "config") or getattr(pipeline, "scheduler", None) is None:
        raise ConfigError(
            f"model: {type(pipeline).__name__} with {type(transformer).__name__} as its transformer; the flow policy "
            f"trains flow-matching pipelines of diffusers, such as {', '.join(list(FAMILIES)[:3])}"
        )
    return family_of(pipeline)(pipeline, asked)
