"""Attention inside a vision tower: windows and frames of one size in one batched call.

A tower attends within windows or frames, laid out one after the other. Under SDPA transformers calls the kernel once
for each of them: 64 times a layer for a picture of 1,024 tokens. Here those of one length form a batch; the numbers
are the same. FlashAttention has its own kernel for such sequences and is left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION = "mmrl_vision_flash_sdpa"
"""transformers hands whole sequences and their boundaries to attentions with "flash" in their name, and calls any
other once for each window."""


def install(visual: nn.Module) -> None:
    """Give a vision tower that runs under SDPA this attention. Once, when the policy is made."""
    from transformers import AttentionInterface

    if visual.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        visual.config._attn_implementation = ATTENTION


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **options: Any,
) -> tuple[Tensor, None]:
    """Registered with transformers. query, key, value (1, H, L, d) -> (1, L, H, d).

    cu_seq_lens_q  (n + 1,) boundaries of the windows: 0, ..., L
    """
    lengths = cu_seq_lens_q.diff()
    sizes = [size for size in lengths.unique().tolist() if size]
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if len(sizes) == 1:
        return _windows(q, k, v, sizes[0], scaling)[None], None
    of_token = lengths.repeat_interleave(lengths)
    places = [(of_token == size).nonzero().squeeze(1) for size in sizes]
    parts = [_windows(q[at], k[at], v[at], size, scaling) for at, size in zip(places, sizes, strict=True)]
    return torch.cat(parts)[torch.cat(places).argsort()][None], None


def _windows(query: Tensor, key: Tensor, value: Tensor, size: int, scaling: float) -> Tensor:
    """(n * size, H, d) each, windows of `size` tokens one after the other -> (n * size, H, d)"""
    q, k, v = (t.unflatten(0, (-1, size)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1)
