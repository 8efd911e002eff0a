"""The trainer's weights for an engine: whole, merged, one at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from mmrl.policies import adapters
from mmrl.policies.sharding import plain_name


def named_weights(model: Any, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """(transformers' name, tensor) of every weight, tied ones once. Weights in shards must be whole (`acting`).

    merged  LoRA is folded in, a layer at a time, so that no second model is ever held; False gives PEFT's names
    """
    if not merged or not adapters.is_adapted(model):
        yield from ((plain_name(name), weight.detach()) for name, weight in model.named_parameters())
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapters.unwrapped(model)
    layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, weight in base.named_parameters():
        holder = next((prefix for prefix in _prefixes(name) if prefix in layers), None)
        if holder is None:
            yield plain_name(name), weight.detach()
        elif name == f"{holder}.base_layer.weight":
            for part, value in _folded(layers[holder]).items():
                yield plain_name(f"{holder}.{part}"), value


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))


def _folded(layer: Any) -> dict[str, Tensor]:
    """What a layer with an adapter comes to without one. A copy is merged: unmerging would not restore every bit."""
    alone = copy.deepcopy(layer)
    alone.merge(adapter_names=["default"])
    return {name: weight.detach() for name, weight in alone.get_base_layer().named_parameters()}
