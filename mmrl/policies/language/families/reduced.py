"""The model that the self-check runs: the first layers of the real one, in float32, with short windows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mmrl.policies.language.families.default import Family
from mmrl.policies.quantized import unpack, without_marks

WINDOWS = {"sliding_window": 12, "attention_chunk_size": 16, "floor_scale": 8, "index_topk": 16}
"""Shorter than the check's prompts, so that what happens beyond a window is seen."""
AT_LEAST = 4
"""Layers; DeepStack feeds the first few."""


def reduced(model: Any, family: Family) -> Any:
    """A float32 copy of `model` with its first decoder layers alone: as few as have every kind of layer it has."""
    layers = family.decoder(model).layers
    kept = kinds_covered(layers)
    memo: dict[int, Any] = {id(layer): nn.Identity() for layer in layers[kept:]}
    small = copy.deepcopy(model, memo)
    unpack(small)
    small = without_marks(small).float().requires_grad_(False).eval()
    decoder = family.decoder(small)
    decoder.layers = nn.ModuleList(list(decoder.layers)[:kept])
    _shorten(small)
    return small


def kinds_covered(layers: Any) -> int:
    """Length of the shortest beginning that has a layer of every kind, at least `AT_LEAST`."""
    first: dict[Any, int] = {}
    for index, layer in enumerate(layers):
        first.setdefault(_kind(layer), index)
    return min(len(layers), max(AT_LEAST, *(index + 1 for index in first.values())))


def _kind(layer: nn.Module) -> Any:
    """What tells layers apart: their modules, and every switch or word that these keep."""
    seen = []
    for name, module in layer.named_modules():
        switches = [(k, v) for k, v in vars(module).items() if isinstance(v, (bool, str)) and k != "training"]
        windows = [(k, v is None) for k, v in vars(module).items() if k in WINDOWS]
        seen.append((name, type(module).__name__, tuple(switches), tuple(windows)))
    return tuple(seen)


def _shorten(model: Any) -> None:
    """Windows, chunks and floors below the length of a prompt, in the configuration and wherever modules keep them."""
    text = model.config.get_text_config()
    for holder in (text, *model.get_decoder().modules()):
        for name, length in WINDOWS.items():
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > length:
                setattr(holder, name, length)


@torch.no_grad()
def random_actions(family: Family, lengths: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """Responses of ordinary tokens: no special ones, no placeholders."""
    tokenizer = family.processor.tokenizer
    never = {*family.suppressed, *tokenizer.all_special_ids}
    size = min(len(tokenizer), family.text.vocab_size)
    usual = torch.tensor([i for i in range(size) if i not in never])
    generator = torch.Generator().manual_seed(seed)
    return [usual[torch.randint(len(usual), (length,), generator=generator)] for length in lengths]
