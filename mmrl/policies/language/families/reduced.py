"""The model that the self-check runs: the first layers of the real one, in float32, with short windows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mmrl.policies.language.families.default import Family
from mmrl.policies.quantized import unpack, without_marks

WINDOWS = {"sliding_window": 12, "attention_chunk_size": 16, "floor_scale": 8, "log_scaling_n_floor": 8}
"""Shorter than the check's prompts, so that what happens beyond a window is seen. One response is longer than the
window, for caches that count it from a prompt's end."""
CHOSEN = 16
"""Keys that a layer may choose, where it chooses some of all before it."""
BUDGETS = ("index_topk", "indexer_budget", "token_budget")
POOLED = ("index_kpool", "indexer_compress_ratio", "compress_ratio")
"""How many keys are chosen as one."""
BLOCKS = ({"index_block_size": 8, "index_topk_blocks": 2}, {"block_size": 8, "topk_blocks": 2})
"""Blocks of keys and how many are chosen: in a configuration, and as a layer keeps them."""
AT_LEAST = 4
"""Layers; DeepStack feeds the first few."""


def reduced(model: Any, family: Family, *, windows: bool = True, choices: bool = True) -> Any:
    """A float32 copy of `model` with its first decoder layers alone: as few as have every kind of layer it has.

    windows  shorter than the check's prompts
    choices  layers that choose their keys choose fewer than the check's prompts have
    """
    layers = family.decoder(model).layers
    kept = kinds_covered(layers)
    memo: dict[int, Any] = {id(layer): nn.Identity() for layer in layers[kept:]}
    small = copy.deepcopy(model, memo)
    unpack(small)
    small = without_marks(small).float().requires_grad_(False).eval()
    decoder = family.decoder(small)
    decoder.layers = nn.ModuleList(list(decoder.layers)[:kept])
    for holder in holders(small):
        if windows:
            _shorten(holder)
        if windows and choices:
            _choose_fewer(holder)
    return small


def chosen(model: Any) -> int | None:
    """How many keys the layers choose that choose; None where all layers see all that their windows show."""
    numbers = [getattr(holder, name, None) for holder in holders(model) for name in BUDGETS]
    for holder in holders(model):
        for size, count in BLOCKS:
            numbers.append(_product(getattr(holder, size, None), getattr(holder, count, None)))
    known = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
    return min(known, default=None)


def _product(size: Any, count: Any) -> int | None:
    return size * count if isinstance(size, int) and isinstance(count, int) else None


def holders(model: Any) -> list[Any]:
    """Where lengths stand: the configuration of the text decoder, and modules that keep their own."""
    return [model.config.get_text_config(), *model.get_decoder().modules()]


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


def _shorten(holder: Any) -> None:
    """Windows, chunks and floors below the length of a prompt."""
    for name, length in WINDOWS.items():
        _lower(holder, name, length)


def _choose_fewer(holder: Any) -> None:
    """Fewer keys than a prompt has, in whole pools or blocks."""
    pool = next((p for name in POOLED if isinstance(p := getattr(holder, name, None), int)), 1)
    length = max(CHOSEN - CHOSEN % pool, pool)
    for name in BUDGETS:
        _lower(holder, name, length)
    _lower(holder, "block_topk", length // pool)
    for names in BLOCKS:
        if all(isinstance(getattr(holder, name, None), int) for name in names):
            for name, length in names.items():
                _lower(holder, name, length)


def _lower(holder: Any, name: str, length: int) -> None:
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
