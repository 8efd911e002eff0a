"""LoRA, full fine-tuning, the reference weights and export, for any torch model: language or flow.

LoraConfig            the configuration section
attach_lora           wrap a model with fresh adapters, or with the ones a run starts from
reference_adapter     the wrapped model as it was when training began, inside a `with`
add_frozen_adapter    a copy of the adapter that moves by a rule of its own (`mmrl.policies.anchor`)
trainable_state       what training changes, by name
merged_copy           full weights with the adapter folded in
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.errors import ConfigError, PolicyError, unknown
from mmrl.policies import quantized
from mmrl.policies.sharding import is_sharded, is_sharded_tensor, plain_name, whole, writes_files
from mmrl.settings import Section

START = "start"
"""Name of the frozen copy of an adapter that a run starts from: its reference policy."""
REFERENCE = "reference"


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685).

    rank     larger learns more and costs memory linearly; 8 to 64 are usual for RL
    alpha    the update is scaled by alpha / rank (by alpha / sqrt(rank) with rslora)
    targets  "all-linear", or names of the layers to adapt
    dropout  noise in the update that the rollout did not have: leave at 0 for exact ratios
    dora     weight-decomposed adapters (arXiv 2402.09353): slower, sometimes better at low rank
    rslora   rank-stabilised scaling (arXiv 2312.03732)
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    targets: str | list[str] = "all-linear"
    dropout: float = Field(0.0, ge=0, lt=1)
    dora: bool = False
    rslora: bool = False

    def layers(self) -> dict[type[nn.Module], type[nn.Module]]:
        """What stands in place of PEFT's own layers, by the type of the layer that is adapted."""
        return {}


def attach_lora(
    model: nn.Module,
    config: LoraConfig | None,
    *,
    seed: int = 0,
    start: str | Path | None = None,
    exclude: str | None = None,
) -> Any:
    """A `peft.PeftModel` around `model`, its base frozen.

    start    directory of an existing adapter to go on from; its own ranks and targets hold, and a frozen copy
             of it stays beside it as the reference
    exclude  regular expression of module names that get no adapter, such as a frozen vision tower
    """
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start is not None:
            if not (Path(start) / "adapter_config.json").is_file():
                raise ConfigError(f"adapter: no adapter_config.json in {start}; expected a PEFT adapter directory")
            kept = _with_layers(peft.PeftConfig.from_pretrained(str(start)), config)
            try:
                wrapped = peft.PeftModel.from_pretrained(model, str(start), is_trainable=True, config=kept)
            except (ValueError, RuntimeError) as error:  # other modules, or modules of another size
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(f"adapter: {start} does not fit this model: {reason}") from None
            wrapped.load_adapter(str(start), adapter_name=START, is_trainable=False)
            wrapped.set_adapter("default")
            return _checked(wrapped, config)
        if config is None:
            raise ConfigError("lora: expected rank, alpha and targets, got null")
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=config.targets,
            exclude_modules=exclude,
            lora_dropout=config.dropout,
            use_dora=config.dora,
            use_rslora=config.rslora,
        )
        try:
            return _checked(peft.get_peft_model(model, _with_layers(settings, config)), config)
        except (ValueError, TypeError, re.error) as error:  # no layer of that name, or no pattern at all
            layers = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
            targets = config.targets if isinstance(config.targets, str) else ", ".join(config.targets)
            reason = f"({' '.join(str(error).split())[:100]})"
            raise ConfigError(f"lora: targets: {unknown('layer', targets, layers)} {reason}") from None


def _with_layers(settings: Any, config: LoraConfig | None) -> Any:
    """The settings of an adapter, which then makes the layers of `config`."""
    if config is not None and (layers := config.layers()):
        settings._register_custom_module(layers)
    return settings


def _checked(model: Any, config: LoraConfig | None) -> Any:
    """`model`, every adapter of which is a layer that `config` wants; PEFT adapts others in its own way."""
    from peft.tuners.lora import LoraLayer

    wanted = tuple((config.layers() if config is not None else {}).values())
    for name, layer in model.named_modules() if wanted else ():
        if isinstance(layer, LoraLayer) and not isinstance(layer, wanted):
            kind = type(layer.get_base_layer()).__name__
            raise ConfigError(f"lora: {name} is a {kind}, and {wanted[0].__name__} stands beside a linear layer alone")
    return model


def is_adapted(model: nn.Module) -> bool:
    """Whether `attach_lora` wrapped this model."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def unwrapped(model: Any) -> Any:
    """The model under any adapters."""
    return model.get_base_model() if is_adapted(model) else model


@contextmanager
def reference_adapter(model: Any) -> Iterator[None]:
    """The adapted model as it was when training began: the start adapter's copy, or no adapter at all."""
    if START not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    with _switched(model, START):
        yield


@contextmanager
def _switched(model: Any, name: str) -> Iterator[None]:
    model.base_model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.base_model.set_adapter("default")


def other_adapter(model: Any, name: str) -> AbstractContextManager[None]:
    """The adapted model with the adapter of this name; "reference" is the model as it was when training began."""
    return reference_adapter(model) if name == REFERENCE else _switched(model, name)


def add_frozen_adapter(model: Any, name: str) -> None:
    """A second adapter beside the one that trains, equal to it now and never trained itself."""
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(name, model.peft_config["default"])
    with torch.no_grad():
        for copied, trained in adapter_pairs(model, name).values():
            copied.requires_grad_(False).copy_(trained)
    model.base_model.set_adapter("default")


def adapter_pairs(model: nn.Module, name: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """{name of a trained parameter: (its counterpart in the adapter `name`, itself)}"""
    named = dict(model.named_parameters())
    own = {n: re.sub(r"\.default(?=\.|$)", f".{name}", n) for n in named}
    return {n: (named[other], named[n]) for n, other in own.items() if other != n}


def frozen_copy(model: nn.Module, device: str | torch.device | None = None) -> Any:
    """A copy that never trains: the reference of full fine-tuning."""
    if is_sharded(model) or any(hasattr(part, "unshard") for part in model.modules()):  # gathered just now, or not
        raise PolicyError("sharded weights cannot be copied; build the policy with from_config, or use LoRA")
    copied = copy.deepcopy(model).requires_grad_(False).eval()
    return copied if device is None else copied.to(device)


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """`{parameter name: CPU tensor}` of everything with `requires_grad`; sharded tensors are gathered."""
    return {plain_name(n): whole(p.detach()).clone() for n, p in module.named_parameters() if p.requires_grad}


def load_trainable_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put `trainable_state` back; names and shapes must agree exactly."""
    parameters = {plain_name(n): p for n, p in module.named_parameters() if p.requires_grad}
    missing, extra = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or extra:
        raise PolicyError(
            f"the checkpoint does not fit the model: {len(missing)} trainable parameters are not in it "
            f"({', '.join(missing[:3]) or '-'}), {len(extra)} of its tensors are unknown "
            f"({', '.join(extra[:3]) or '-'})"
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise PolicyError(f"{name}: shape {tuple(state[name].shape)}, expected {tuple(parameter.shape)}")
    for name, parameter in parameters.items():
        put(parameter, state[name])


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """A tensor, whole or in the parameter's shards, into a parameter, which may be held in shards."""
    value = value.to(parameter.device, parameter.dtype)
    if is_sharded_tensor(parameter) and not is_sharded_tensor(value):
        from torch.distributed.tensor import DTensor, distribute_tensor

        shards = cast(DTensor, parameter)
        value = distribute_tensor(value, shards.device_mesh, shards.placements)
    parameter.copy_(value)


def merged_copy(model: Any) -> Any:
    """Full weights with the adapter folded in. A copy: unmerging in place would not restore every bit. Packed weights
    are unpacked first, so that nothing is rounded a second time."""
    merged = copy.deepcopy(model)
    for name in [n for n in merged.peft_config if n != "default"]:
        merged.delete_adapter(name)
    if any(quantized.is_packed(layer) for layer in merged.modules()):
        merged = _on_plain_weights(merged)
    return merged.merge_and_unload()


def _on_plain_weights(model: Any) -> Any:
    """The adapter of a packed model, on a plain base of the dtype that the rest of it has."""
    import peft

    config, weights = model.peft_config["default"], peft.get_peft_model_state_dict(model)
    dtype = model.get_base_model().dtype
    base = model.unload()
    quantized.unpack(base, dtype)
    with torch.random.fork_rng(devices=[]):
        plain = peft.get_peft_model(quantized.without_marks(base), config)
    peft.set_peft_model_state_dict(plain, weights)
    return plain


@contextmanager
def written_atomically(directory: str | Path) -> Iterator[Path]:
    """A temporary sibling to write into; its files replace those in `directory` when the block succeeds."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        yield Path(scratch)
        for source in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
            target = directory / source.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(source, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(source, target)


def save_adapter_or_weights(
    model: Any, directory: str | Path, *, merged: bool, extras: list[Callable[[Path], Any]]
) -> None:
    """`model.save_pretrained` for an adapter, or full weights; then whatever `extras` add beside them.

    Every rank must call it; the first one writes.
    """
    options: dict[str, Any] = {}
    if is_sharded(model):
        if merged:
            raise PolicyError("sharded weights cannot be merged; save the adapter, load it without FSDP and merge then")
        options["state_dict"] = {n: whole(t) for n, t in model.state_dict().items()}
    if not writes_files():
        return
    with written_atomically(directory) as scratch:
        if is_adapted(model) and not merged:
            model.save_pretrained(str(scratch), selected_adapters=["default"], **options)
        else:
            (merged_copy(model) if is_adapted(model) else model).save_pretrained(str(scratch), **options)
        for save in extras:
            save(scratch)
