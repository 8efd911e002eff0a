"""Model families. `family_of(config, processor)` gives the file of a model type where there is one, else the default.

A file here with a subclass of `Family` that names its `model_types` is found by itself; it overrides what its models
need otherwise, and says why.
"""

from __future__ import annotations

import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

from mmrl.errors import ConfigError
from mmrl.policies.language.families.default import Family


@cache
def overrides() -> dict[str, type[Family]]:
    """{model type: its family}, from the files of this folder."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    found: dict[str, type[Family]] = {}
    unseen = Family.__subclasses__()
    while unseen:
        family = unseen.pop()
        found |= dict.fromkeys(family.model_types, family)
        unseen += family.__subclasses__()
    return found


def check_model_type(config: Any) -> None:
    """Only models of transformers' image-text-to-text class, or with code of their own, can be loaded."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known

    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise ConfigError(
            f"model type {config.model_type!r} is not supported: its decoder has an encoder of its own, so a prompt "
            "and its response do not stand in one row; take one whose text decoder reads the prompt itself"
        )
    if config.model_type not in known and not getattr(config, "auto_map", None):
        raise ConfigError(
            f"model type {config.model_type!r} is not supported: it is none of the {len(known)} vision-language types "
            f"of this transformers (AutoModelForImageTextToText); "
            f"nearest: {', '.join(get_close_matches(config.model_type, known, 3, 0.3)) or 'none'}"
        )


def family_of(config: Any, processor: Any) -> Family:
    """The family of a model configuration."""
    return overrides().get(config.model_type, Family)(config, processor)
