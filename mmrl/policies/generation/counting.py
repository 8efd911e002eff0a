"""How much memory a generator takes, counted without loading or computing anything.

One forward and backward of real shapes runs on the meta device, and every tensor is followed from its first use to its
last: the peak holds what autograd saves, what checkpointing computes again, and the temporaries of the backward pass.
Attention is counted as a fused kernel (queries, keys, values, output and one number a row), which is what PyTorch uses
on GPUs; what kernels take inside themselves and what an allocator leaves between tensors is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrl.policies.generation.families.base import Conditions, Generator, moved
from mmrl.policies.generation.hollow import blank

META = torch.device("meta")


class Live(TorchDispatchMode):
    """Bytes of the tensors that live, and the most there were at once; those of `known` modules are left out."""

    def __init__(self, known: Sequence[nn.Module] = ()):
        super().__init__()
        self.now = self.most = 0
        self._seen = {p.untyped_storage()._cdata for module in known for p in (*module.parameters(), *module.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """Attention by the shapes of a fused kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def fused_attention() -> Iterator[None]:
    real = nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _Fused.apply(query, key, value)

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = real


@dataclass(frozen=True)
class Counted:
    """Bytes of passes over `rows` states.

    saved     what a forward with gradient keeps until its backward
    trained   the most at once in forward and backward, beside weights and gradients that are there already
    sampled   the most at once in a forward without gradient
    """

    rows: int
    saved: int
    trained: int
    sampled: int


def on_meta(conditions: Conditions) -> Conditions:
    return moved(conditions, META)


def count_passes(
    generator: Generator, module: Any, conditions: Conditions, rows: int, *, autocast: torch.dtype | None = None
) -> Counted:  # fmt: skip
    """One forward and backward of `rows` states of these conditions through a transformer on the meta device."""
    given, clocks = [on_meta(conditions)] * rows, generator._clocks
    generator._clocks = {}  # times on the meta device have no values to look up
    state = torch.empty(rows, *generator.state_shape(), device=META)
    times = torch.empty(rows, device=META)

    def forward() -> Tensor:
        if autocast is None:
            return generator._once(module, state, times, given)
        with torch.autocast("meta", autocast):
            return generator._once(module, state, times, given)

    try:
        with fused_attention(), blank():
            with Live([module]) as live, torch.no_grad():
                out = forward()
            sampled, out = live.most, None
            for parameter in module.parameters():  # gradients are there, as from the second micro-batch on
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            with Live([module]) as live:
                out = forward()
                saved = live.now
                out.square().mean().backward()
                trained = live.most
            module.zero_grad()
            del out
    finally:
        generator._clocks = clocks
    return Counted(rows, saved, trained, sampled)


def bytes_of(module: nn.Module) -> int:
    """Of its weights and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
