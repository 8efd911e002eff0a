"""Rollouts of few steps: a distilled adapter lies beside the trained one while rollouts are sampled, and only then.

    v_rollout = v of W + trained adapter + distilled adapter        a handful of steps
    v_trained = v of W + trained adapter                            what the matching loss, references and export are of

The outputs are clean, and a likelihood-free loss asks for no more of them than that, whoever drew them. So the base
learns from rollouts that cost a fifth, and stays a model of many steps. Adapters are read in PEFT's layout or in
diffusers', which published ones have (`pytorch_lora_weights.safetensors`). Evaluation is the base's, in `eval_steps`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.settings import Section

NAME = "distilled"
FACTORS = (".lora_A.weight", ".lora_B.weight")


class DistilledConfig(Section):
    """The adapter that makes few steps enough.

    adapter  its directory or file, in the layout of PEFT or of diffusers
    scale    of what it adds; most are made for 1
    """

    adapter: str
    scale: float = Field(1.0, gt=0)


def attach(pipeline: Any, name: str, module: Any, config: DistilledConfig) -> None:
    """Load it beside the adapter that trains, frozen and switched off. `name` is the transformer's in the pipeline."""
    import peft
    from peft.tuners.lora import LoraLayer

    place = Path(config.adapter)
    folder = place if name == "transformer" else place / name
    try:
        if (folder / "adapter_config.json").is_file():
            module.load_adapter(str(folder), adapter_name=NAME, is_trainable=False)
        else:
            weights, settings = factors(pipeline, name, place)
            module.add_adapter(NAME, peft.LoraConfig(**settings))
            found = peft.set_peft_model_state_dict(module, weights, adapter_name=NAME)
            if found.unexpected_keys:
                raise ValueError(f"no layer for {found.unexpected_keys[0]}")
    except (ValueError, RuntimeError, KeyError) as error:  # other modules, or modules of another size
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"policy.distilled.adapter: {place} does not fit {name}: {reason}") from None
    for layer in module.modules():
        if isinstance(layer, LoraLayer) and NAME in layer.scaling:
            layer.scaling[NAME] *= config.scale
    for parameter_name, parameter in module.named_parameters():
        if f".{NAME}." in parameter_name:
            parameter.requires_grad_(False)
    module.base_model.set_adapter("default")


def factors(pipeline: Any, name: str, place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of one transformer in PEFT's names, and the settings of its adapter, from diffusers' layout.

    What the file says of itself holds; one that says nothing has the rank of each layer's factors, and an alpha beside
    them or none, which is the rank.
    """
    state, said = _read(pipeline, place)
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    layers = {key.removesuffix(end) for key in own for end in FACTORS if key.endswith(end)}
    other = [key for key in own if not key.endswith((*FACTORS, ".alpha"))]
    if other or not layers:
        parts = sorted({key.split(".")[0] for key in state})
        what = f"the tensor {other[0]}" if other else f"no tensors of {name}, but of {', '.join(parts) or 'nothing'}"
        raise ConfigError(f"policy.distilled.adapter: {place} holds {what}; expected lora_A and lora_B of its layers")
    weights = {f"base_model.model.{key}": value for key, value in own.items() if key.endswith(FACTORS)}
    if f"{name}.r" in said:
        return weights, {k.removeprefix(f"{name}."): v for k, v in said.items() if k.startswith(f"{name}.")}
    ranks = {layer: own[layer + FACTORS[0]].shape[0] for layer in layers}
    alphas = {layer: float(own.get(f"{layer}.alpha", ranks[layer])) for layer in layers}
    return weights, {"target_modules": sorted(ranks), "rank_pattern": ranks, "alpha_pattern": alphas}


def _read(pipeline: Any, place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the pipeline's own reader finds, alphas among the tensors, and what the file says of itself."""
    read = getattr(type(pipeline), "lora_state_dict", None)
    if read is None or not place.exists():
        why = f"{type(pipeline).__name__} reads no LoRA of diffusers" if place.exists() else "there is nothing"
        raise ConfigError(
            f"policy.distilled.adapter: no adapter_config.json in {place}, and {why}; expected a PEFT adapter "
            "directory, or a LoRA as diffusers saves it"
        )
    folder, wanted = (str(place.parent), {"weight_name": place.name}) if place.is_file() else (str(place), {})
    options: dict[str, Any] = {"return_lora_metadata": True}
    if "return_alphas" in inspect.signature(read).parameters:
        options["return_alphas"] = True
    try:
        state, *alphas, said = read(folder, **wanted, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.distilled.adapter: {place}: {' '.join(str(error).split())[:200]}") from None
    return state | {k: torch.as_tensor(v) for each in alphas if each for k, v in each.items()}, said or {}


@contextmanager
def beside(modules: Mapping[str, Any], wanted: bool = True) -> Iterator[None]:
    """The transformers with the distilled adapter on top of the one that is switched on."""
    with ExitStack() as stack:
        for module in modules.values() if wanted else ():
            stack.enter_context(_with(module))
        yield


@contextmanager
def _with(module: Any) -> Iterator[None]:
    active = list(module.base_model.active_adapters)
    module.base_model.set_adapter([*active, NAME], inference_mode=True)
    try:
        yield
    finally:
        module.base_model.set_adapter(active, inference_mode=active != ["default"])
