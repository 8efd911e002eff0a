"""What a flow policy saves: adapters in the layouts of PEFT and of diffusers, transformer weights, whole pipelines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmrl.errors import PolicyError
from mmrl.policies import adapters
from mmrl.policies.generation.pipeline import gathered
from mmrl.policies.sharding import is_sharded, whole, writes_files

MAIN = "transformer"


def save_transformers(pipeline: Any, modules: Mapping[str, Any], directory: str | Path) -> None:
    """Each transformer's adapter or weights: the first in `directory`, a second expert in a folder of its name."""
    for name, module in modules.items():
        place = Path(directory) if name == MAIN else Path(directory) / name
        adapted = adapters.is_adapted(module)
        extras = diffusers_lora(pipeline, module) if adapted else []
        if is_sharded(module) and not adapted:
            module = gathered(module)
        adapters.save_adapter_or_weights(module, place, merged=False, extras=extras)


def save_pipeline(pipeline: Any, modules: Mapping[str, Any], directory: str | Path) -> None:
    """A whole pipeline as diffusers loads it, adapters folded in."""
    if any(is_sharded(module) for module in modules.values()):
        raise PolicyError("sharded weights cannot be merged; save the adapter, load it without FSDP and merge then")
    if not writes_files():
        return
    # a shallow copy keeps what the class was configured with besides its parts, such as Wan's boundary
    merged = copy.copy(pipeline)
    for name, module in modules.items():
        merged.__dict__[name] = adapters.merged_copy(module) if adapters.is_adapted(module) else module
    with adapters.written_atomically(directory) as scratch:
        merged.save_pretrained(scratch)


def diffusers_lora(pipeline: Any, module: Any) -> list[Callable[[Path], Any]]:
    """What writes the adapter for `pipeline.load_lora_weights`; nothing where the pipeline has no such method, or the
    adapter is no LoRA."""
    import peft

    from mmrl.policies.generation.residual import has_head

    write = getattr(type(pipeline), "save_lora_weights", None)
    if write is None or has_head(module):
        return []
    weights = peft.get_peft_model_state_dict(module, adapter_name="default")
    settings = module.peft_config["default"].to_dict()
    return [partial(
        write,
        transformer_lora_layers={n.removeprefix("base_model.model."): whole(w) for n, w in weights.items()},
        transformer_lora_adapter_metadata={n: sorted(v) if isinstance(v, set) else v for n, v in settings.items()},
    )]  # fmt: skip
