"""Decoding a group from one copy of its prompt's keys and values.

Every row keeps a cache of its own tokens alone; the prompt's keys stay where the prefill put them, once per
prompt, and serve all rows that answer it in one matrix product. Against a cache repeated for each row this saves
G - 1 copies of the prompt in memory and, at every step, reading them. Layers with a sliding window keep the
repeated cache (`sampling.RepeatedCache`).

Where there are kernels that return log-sum-exps (`cascade`), a step of a layer is two calls, one over the prompts and
one over all rows' own tokens, joined by them; elsewhere it is matrix products and a softmax over both. Over many own
tokens of so few queries the kernel is slower than matrix products, which give log-sum-exps as well (`_on_own`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.language.fast import cascade

PRODUCTS = 128
"""Own tokens from which matrix products are faster than the attention kernel: of four layers, 16 rows of two queries a
key head, 0.6 ms instead of 0.7 at 128 tokens, 1.2 instead of 1.9 at 256, 7.5 instead of 8.4 at 1,024."""


@dataclass
class SharedPrefix:
    """Passed through the model to `attention` while decoding.

    cache    keys and values of U left-padded prompts
    padding  (B, 1, 1, P) bool: where the prompt of a row is padding; None where no prompt is padded
    hidden   (U, 1, 1, P) what is added to a prompt's scores: -inf in padding; None where no prompt is padded
    index    (U, G) rows that answer each prompt, ascending
    there    (U, G) bool: places of `index` that hold a row
    even     every place does: rows can be regrouped without gathering them
    """

    cache: Any
    padding: Tensor | None
    hidden: Tensor | None
    index: Tensor
    there: Tensor
    even: bool

    @classmethod
    def of(cls, cache: Any, real: Tensor, context: Tensor) -> SharedPrefix:
        """cache: filled; real (U, P) bool: not padding; context (B,) ascending: the prompt of each row.
        Every prompt has a row."""
        counts = torch.bincount(context, minlength=real.shape[0])
        there = torch.arange(int(counts.max()), device=context.device) < counts[:, None]
        index = torch.zeros(there.shape, dtype=torch.long, device=context.device)
        index[there] = torch.arange(len(context), device=context.device)
        padding = hidden = None
        if not bool(real.all()):
            padding = ~real[context][:, None, None]
            hidden = torch.zeros(real.shape, dtype=cache.layers[0].keys.dtype, device=real.device)[:, None, None]
            hidden = hidden.masked_fill(~real[:, None, None], -torch.inf)
        return cls(cache, padding, hidden, index, there, bool(there.all()))


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, prefix: SharedPrefix, scaling: float
) -> tuple[Tensor, None]:
    """One new token per row over `[its prompt | its own tokens]`.

    query (B, H, 1, d); key and value (B, H_kv, t, d), own tokens -> (B, 1, H, d)
    """
    layer = prefix.cache.layers[module.layer_idx]
    rows, heads, _, size = query.shape
    query = query.view(rows, key.shape[1], -1, size)
    return attended(query, key, value, layer, prefix, scaling).reshape(rows, 1, heads, size), None


def attended(q: Tensor, k: Tensor, v: Tensor, layer: Any, prefix: SharedPrefix, scaling: float) -> Tensor:
    """q (B, H_kv, r, d); k, v (B, H_kv, t, d); layer: keys, values (U, H_kv, P, d) of prompts -> (B, H_kv, r, d)"""
    way = _joined if cascade.offered(q, k, v, layer.keys, layer.values) else _at_once
    return way(q, k, v, layer, prefix, scaling)


def _joined(q: Tensor, k: Tensor, v: Tensor, layer: Any, prefix: SharedPrefix, scaling: float) -> Tensor:
    """By two kernels."""
    on_prompt, lse_prompt = cascade.kernel(
        _to_prompts(q, prefix), layer.keys, layer.values, False, scaling, prefix.hidden
    )
    on_own, lse_own = _on_own(q, k, v, scaling)
    own = torch.sigmoid(lse_own[..., None] - _to_rows(lse_prompt[..., None], prefix))  # share of the attention
    return torch.lerp(_to_rows(on_prompt, prefix), on_own, own.to(q.dtype))


def _on_own(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """As `cascade.kernel`: (B, H_kv, r, d) and (B, H_kv, r)."""
    if k.shape[2] < PRODUCTS or k.dtype != torch.float32:
        return cascade.kernel(q, k, v, False, scaling)
    scores = (q * scaling) @ k.transpose(2, 3)
    top = scores.amax(dim=-1, keepdim=True)
    shares = (scores - top).exp_()
    total = shares.sum(dim=-1, keepdim=True)
    return (shares @ v).div_(total), (top + total.log()).squeeze(-1)


def _at_once(q: Tensor, k: Tensor, v: Tensor, layer: Any, prefix: SharedPrefix, scaling: float) -> Tensor:
    """The same by one softmax."""
    of_prompt = _to_rows(_to_prompts(q, prefix) @ layer.keys.transpose(2, 3), prefix)
    if prefix.padding is not None:
        of_prompt = of_prompt.masked_fill(prefix.padding, -torch.inf)
    scores = torch.cat([of_prompt, q @ k.transpose(2, 3)], dim=-1).float() * scaling
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    on_prompt, on_own = weights.split([layer.keys.shape[2], k.shape[2]], dim=-1)
    return _to_rows(_to_prompts(on_prompt, prefix) @ layer.values, prefix) + on_own @ v


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
