"""A frozen base in four or eight bits under float adapters (QLoRA, Dettmers et al., arXiv 2305.14314).

Linear layers become those of bitsandbytes: nf4, with scales that are quantized themselves, or int8 with a scale a row
and token. A checkpoint is loaded in `policy.dtype` and packed layer by layer, the same for transformers and diffusers,
whose own loaders differ in what they pack and where. Rollouts and scoring run the same packed layers, so ratios
start at 1 as ever. LLM.int8()'s columns of outliers are off: which ones there are would depend on what else is in the
batch, and with them every log-prob.

Nothing is recast besides: what is not packed keeps `policy.dtype`, adapters are float32. PEFT's
`prepare_model_for_kbit_training`, which makes the rest float32, is policy.dtype=float32 with policy.autocast=bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.precision import DTYPES

Quantize = Literal["nf4", "int8"]
BYTES = {"nf4": 0.516, "int8": 1.0}
"""A weight: nf4 has eight bits of scale for 64 weights and 32 more for 256 of these; int8's scales are negligible."""
MARKS = frozenset(["hf_quantizer", "is_quantized", "quantization_method"])
"""What a loader leaves on a checkpoint that was stored packed."""


def refuse(settings: Any) -> None:
    """ConfigError where a policy section asks for packed weights with something that they cannot do."""
    kind = getattr(settings, "quantize", None)
    if kind is None:
        return
    if getattr(settings, "lora", None) is None and getattr(settings, "adapter", None) is None:
        raise ConfigError(
            f"policy.quantize={kind}: packed weights do not train; give adapters, such as policy.lora.rank=16"
        )
    if getattr(settings, "engine_name", "local") != "local":
        raise ConfigError(
            f"policy.quantize={kind} with policy.engine={settings.engine_name}: the engine would be handed packed "
            "weights; use policy.engine=local, or train without policy.quantize"
        )


def refuse_shards(model: nn.Module, sharded: bool) -> None:
    """ConfigError for a packed model on FSDP2, which cuts weights where the packing does not."""
    if sharded and any(is_packed(module) for module in model.modules()):
        raise ConfigError(
            "policy.quantize with FSDP2: packed weights are not cut into shards; run DDP (configs/accelerate/ddp.yaml)"
            ", each process with the packed model whole, or leave policy.quantize out"
        )


def _refuse_missing(kind: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"policy.quantize={kind} needs bitsandbytes, which is not installed: pip install 'mmrl[qlora]', or leave "
            "policy.quantize out"
        )


def pack(model: nn.Module, layers: Iterable[nn.Module], settings: Any) -> Any:
    """`model`, the plain linear layers within `layers` packed as `settings.quantize` says; as it is where that is None.
    Raises ConfigError where bitsandbytes is not installed."""
    if settings.quantize is None:
        return model
    refuse(settings)
    _refuse_missing(settings.quantize)
    compute = DTYPES[settings.autocast or settings.dtype]
    inside = {id(m) for part in layers for m in part.modules() if type(m) is nn.Linear}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in inside:
                setattr(parent, name, _packed(child, settings.quantize, compute))
    return model


def _packed(plain: Any, kind: Quantize, compute: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    size, bias, layer = (plain.in_features, plain.out_features), plain.bias is not None, bnb.nn
    made: Any
    if kind == "nf4":
        made = layer.Linear4bit(*size, bias=bias, compute_dtype=compute, quant_type="nf4", compress_statistics=True)
        made.weight = layer.Params4bit(
            plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
        )
        # on such CPUs it repacks weights when it is first evaluated, into a form that gives no gradient
        made.support_avx512bf16_for_cpu = False
    else:
        made = layer.Linear8bitLt(*size, bias=bias, has_fp16_weights=False, threshold=0.0)
        made.weight = layer.Int8Params(plain.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = plain.bias
    return made.to(plain.weight.device).requires_grad_(False)


def is_packed(module: nn.Module) -> bool:
    """Whether this layer's weight is bitsandbytes'."""
    return type(module).__module__.startswith("bitsandbytes")


def unpack(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Put a plain layer of the same values in the place of every packed one."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_packed(child):
                setattr(parent, name, _plain(child).to(dtype))


def without_marks(model: Any) -> Any:
    """`model`, unpacked, no longer says that it is quantized: it is saved and loaded like any other."""
    for module in model.modules():
        for name in [n for n in vars(module) if n in MARKS or n.startswith("is_loaded_in_")]:
            delattr(module, name)
        for settings in (getattr(module, "config", None), getattr(module, "_internal_dict", None)):
            if hasattr(settings, "quantization_config"):
                _forget(settings)
    return model


def _forget(settings: Any) -> None:
    vars(settings).pop("quantization_config", None)
    if isinstance(settings, dict):  # of diffusers, which freezes it
        dict.pop(settings, "quantization_config", None)


def _plain(packed: Any) -> nn.Linear:
    weight = _values(packed)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=packed.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if packed.bias is not None:
        plain.bias = nn.Parameter(packed.bias.detach().float(), requires_grad=False)
    return plain


def _values(packed: Any) -> Tensor:
    """(out, in) float32 of a packed layer's weight."""
    from bitsandbytes.functional import dequantize_4bit

    weight = packed.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return dequantize_4bit(weight.data, state).float()
    scales = weight.SCB if weight.SCB is not None else packed.state.SCB
    return weight.data.float() * (scales.float() / 127)[:, None]


def bytes_saved(kind: Quantize, layers: Iterable[nn.Module], each: int) -> int:
    """By packing what `pack` packs within `layers`, whose weights take `each` bytes."""
    found = {id(m): m.weight.numel() for part in layers for m in part.modules() if type(m) is nn.Linear}
    return int(sum(found.values()) * (each - BYTES[kind]))
