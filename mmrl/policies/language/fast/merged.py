"""What a projection multiplies with: its own weight, or with adapters the weight that they add to.

A step reads the sum `W + scaling B A` once where a projection with adapters is three products. The sum is a copy, made
when a decoding begins. Only adapters that are such a sum are known: LoRA with any scaling, several at once, switched
off or merged already. `refusal` names the others: weight-decomposed ones (DoRA), variants, quantized base layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NOT_PLAIN = "projections are no plain linear layers"
NO_SUM = "adapters are of a kind that is not added to the weight"
TOO_MUCH = "copies of the adapted weights would take more than a quarter of the memory"
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def refusal(modules: Iterable[Any]) -> str | None:
    """Why these projections are not read as weights, or None."""
    copied = 0
    for module in modules:
        if type(base(module)) is not nn.Linear:
            return NOT_PLAIN
        if module is base(module):
            continue
        if not _is_sum(module):
            return NO_SUM
        copied += base(module).weight.nbytes if _added(module) else 0
    return TOO_MUCH if copied > memory() / 4 else None


def base(module: Any) -> Any:
    """The layer under PEFT's own LoRA layer, and any other as it is."""
    if type(module) is nn.Linear:
        return module
    from peft.tuners.lora.layer import Linear

    return module.base_layer if type(module) is Linear else module


@torch.no_grad()
def weight(module: Any) -> Tensor:
    """Of a projection that was not refused: its own, or a copy with the adapters in it."""
    found = base(module).weight.detach()
    for name in _added(module):
        found = module.get_delta_weight(name).add_(found)
    return found


def _added(module: Any) -> list[str]:
    """The adapters that take part and are not in the weight yet."""
    if module is base(module) or module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]


def _is_sum(module: Any) -> bool:
    if module.merged:
        return not module.disable_adapters  # else PEFT takes them out again when the layer is called next
    return not any(name in module.lora_variant or module.lora_bias.get(name) for name in _added(module))


def memory() -> float:
    """Bytes that this process may take: the machine's, or its container's where that has fewer."""
    found = [float("inf")]
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in map(Path, LIMITS):
        try:
            found.append(float(limit.read_text()))
        except (OSError, ValueError):  # none; "max"
            continue
    return min(found)
