"""Matrix-product FLOPs of a Qwen2.5-VL step: a formula for what must be done once, and a counter for what was done.

A multiply-add counts 2; a backward pass counts twice its forward. Softmax, norms and rotations are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Sizes:
    """Of one step: `groups` prompts of `prompt` tokens with one image of `patches`; `members` responses of `new`."""

    groups: int
    members: int
    prompt: int
    new: int
    patches: int


def vision_forward(vision: Any, patches: int) -> float:
    """One image: patch embedding, blocks (windows of `window_size`, full at some depths), merger."""
    h, m, out = vision.hidden_size, vision.intermediate_size, vision.out_hidden_size
    unit = vision.spatial_merge_size**2
    dense = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * h
    dense += vision.depth * (4 * h * h + 3 * h * m)
    merger = (unit * h) * (unit * h) + (unit * h) * out
    window = (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    keys = full * patches + (vision.depth - full) * min(window, patches)
    return 2.0 * patches * dense + 2.0 * patches / unit * merger + 4.0 * patches * keys * h


def _dense(text: Any, tokens: float) -> float:
    """Projections and MLPs of the decoder."""
    head = text.hidden_size // text.num_attention_heads
    kv = text.num_key_value_heads * head
    layer = 2 * text.hidden_size**2 + 2 * text.hidden_size * kv + 3 * text.hidden_size * text.intermediate_size
    return 2.0 * tokens * text.num_hidden_layers * layer


def prompt_forward(text: Any, prompt: int) -> float:
    """Causal: a token sees half of the prompt on average."""
    return _dense(text, prompt) + 4.0 * prompt * (prompt / 2) * text.hidden_size * text.num_hidden_layers


def response_forward(text: Any, prompt: int, new: int) -> float:
    """One response: every token sees the prompt and half of the response, and passes the output head."""
    attention = 4.0 * new * (prompt + new / 2) * text.hidden_size * text.num_hidden_layers
    return _dense(text, new) + attention + 2.0 * new * text.hidden_size * text.vocab_size


def step_floor(config: Any, sizes: Sizes, train_vision: bool) -> dict[str, float]:
    """What one on-policy step cannot do without: image and prompt forward and backward once per group, responses
    decoded once and then forward and backward once."""
    text = config.get_text_config()
    parts = {
        "vision": (3 if train_vision else 1) * sizes.groups * vision_forward(config.vision_config, sizes.patches),
        "prompt": 3 * sizes.groups * prompt_forward(text, sizes.prompt),
        "response": 4 * sizes.groups * sizes.members * response_forward(text, sizes.prompt, sizes.new),
    }
    return parts | {"total": sum(parts.values())}


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> float:
    """From shapes (B, H, L, d): scores and weighted sum, over all keys whether masked or not."""
    batch, heads, length, size = query
    return 4.0 * batch * heads * length * key[2] * size


def _attention_backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> float:
    """Five products, one of them the scores again."""
    return 2.5 * _attention(query, key)


def counted(work: Callable[[], Any]) -> float:
    """FLOPs of matrix products and attention that `work` runs, by torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        work()
    return float(counter.get_total_flops())


def matmul_rate(size: int = 1024, repeats: int = 40) -> float:
    """FLOPs a second of the clock of a square float32 matrix product, the best of `repeats`; by processor time, which a
    busy machine changes least."""
    import time

    import torch

    a, best = torch.randn(size, size), 0.0
    for _ in range(repeats):
        start = time.process_time()
        _ = a @ a
        best = max(best, 2 * size**3 * torch.get_num_threads() / (time.process_time() - start))
    return best
