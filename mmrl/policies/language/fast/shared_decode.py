"""Decoding a group from one copy of its prompt's keys and values.

Every row keeps a cache of its own tokens alone; the prompt's keys stay where the prefill put them, once per
prompt, and serve all rows that answer it in one matrix product. Against a cache repeated for each row this saves
G - 1 copies of the prompt in memory and, at every step, reading them. Layers with a sliding window keep the
repeated cache (`sampling.RepeatedCache`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class SharedPrefix:
    """Passed through the model to `attention` while decoding.

    cache    keys and values of U left-padded prompts
    padding  (B, 1, 1, P) bool: where the prompt of a row is padding; None where no prompt is padded
    index    (U, G) rows that answer each prompt, ascending
    there    (U, G) bool: places of `index` that hold a row
    even     every place does: rows can be regrouped without gathering them
    """

    cache: Any
    padding: Tensor | None
    index: Tensor
    there: Tensor
    even: bool

    @classmethod
    def of(cls, cache: Any, real: Tensor, context: Tensor) -> SharedPrefix:
        """real (U, P) bool: not padding; context (B,) ascending: the prompt of each row. Every prompt has a row."""
        counts = torch.bincount(context, minlength=real.shape[0])
        there = torch.arange(int(counts.max()), device=context.device) < counts[:, None]
        index = torch.zeros(there.shape, dtype=torch.long, device=context.device)
        index[there] = torch.arange(len(context), device=context.device)
        padding = None if bool(real.all()) else ~real[context][:, None, None]
        return cls(cache, padding, index, there, bool(there.all()))


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, prefix: SharedPrefix, scaling: float
) -> tuple[Tensor, None]:
    """One new token per row over `[its prompt | its own tokens]`.

    query (B, H, 1, d); key and value (B, H_kv, t, d), own tokens -> (B, 1, H, d)
    """
    layer = prefix.cache.layers[module.layer_idx]
    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    query = query.view(rows, kv_heads, heads // kv_heads, size)
    of_prompt = _to_rows(_to_prompts(query, prefix) @ layer.keys.transpose(2, 3), prefix)
    if prefix.padding is not None:
        of_prompt = of_prompt.masked_fill(prefix.padding, -torch.inf)
    scores = torch.cat([of_prompt, query @ key.transpose(2, 3)], dim=-1).float() * scaling
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    on_prompt, on_own = weights.split([layer.keys.shape[2], key.shape[2]], dim=-1)
    out = _to_rows(_to_prompts(on_prompt, prefix) @ layer.values, prefix) + on_own @ value
    return out.reshape(rows, 1, heads, size), None


def _to_prompts(rows: Tensor, prefix: SharedPrefix) -> Tensor:
    """(B, H_kv, r, x) -> (U, H_kv, G r, x): the rows of each prompt side by side."""
    grouped = rows.view(*prefix.index.shape, *rows.shape[1:]) if prefix.even else rows[prefix.index]
    return grouped.transpose(1, 2).reshape(len(grouped), rows.shape[1], -1, rows.shape[-1])


def _to_rows(grouped: Tensor, prefix: SharedPrefix) -> Tensor:
    """(U, H_kv, G r, x) -> (B, H_kv, r, x)"""
    prompts, kv_heads, _, width = grouped.shape
    members = prefix.index.shape[1]
    rows = grouped.view(prompts, kv_heads, members, -1, width).transpose(1, 2)
    return rows.flatten(0, 1) if prefix.even else rows[prefix.there]
