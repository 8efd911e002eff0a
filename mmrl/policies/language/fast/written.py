"""The keys and values of tokens as they are written: put in their place in a block, not joined to the old ones.

transformers' cache joins every token to a new copy of all before it, so n tokens move n^2 / 2 of them: a quarter of
the time that writes answers of 1,024 tokens. Here attention is handed a view of the block as far as it is written.
In it the tokens of a row and head lie behind one another, rows and heads a fixed distance apart; batched matrix
products and attention kernels read that as it is, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Tokens of room that a block has at first."""


class Growing:
    """A tensor (B, H, t, d) whose t grows. Without gradient: what was handed out is part of what is written to."""

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._count = 0

    def append(self, new: Tensor) -> Tensor:
        """new (B, H, n, d) behind all that was appended before, by this method alone -> (B, H, t + n, d)."""
        before, self._count = self._count, self._count + new.shape[2]
        if self._block is None or self._count > self._block.shape[2]:
            block = new.new_empty(*new.shape[:2], self._count + max(BLOCK, self._count // 4), new.shape[3])
            if self._block is not None:
                block[:, :, :before] = self._block[:, :, :before]
            self._block = block
        self._block[:, :, before : self._count] = new
        return self._block[:, :, : self._count]

    def select(self, rows: Tensor) -> None:
        """Forget what was appended for other rows."""
        if self._block is not None:
            self._block = self._block.index_select(0, rows)

    def add(self, written: Tensor, new: Tensor) -> Tensor:
        """written (B, H, t, d) what was handed out last, or what has taken its place; new (B, H, n, d).

        Returns (B, H, t + n, d). A full block is copied to one with room for a quarter more.
        """
        before, after = written.shape[2], written.shape[2] + new.shape[2]
        if self._block is None or after > self._block.shape[2] or not _begins(self._block, written):
            self._block = new.new_empty(*new.shape[:2], after + max(BLOCK, after // 4), new.shape[3])
            self._block[:, :, :before] = written
        self._block[:, :, before:after] = new
        return self._block[:, :, :after]

    def choose(self, written: Tensor, rows: Tensor) -> Tensor:
        """(b, H, t, d) of rows (b,); the others are forgotten."""
        if self._block is None or not _begins(self._block, written):
            return written[rows]
        self._block = self._block.index_select(0, rows)
        return self._block[:, :, : written.shape[2]]


def _begins(block: Tensor, written: Tensor) -> bool:
    """Whether `written` is the block's beginning, and not a tensor that took its place."""
    same = block.shape[:2] == written.shape[:2] and block.stride() == written.stride()
    return same and block.data_ptr() == written.data_ptr()


def in_place(cache: Any) -> Any:
    """The same cache, empty still, its growing layers written in place; sliding, linear and other layers are left."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.update, layer.batch_select_indices = _written_in_place(layer)
    return cache


def _written_in_place(layer: Any) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[Tensor], None]]:
    """`update` and `batch_select_indices` of a layer."""
    keys, values = Growing(), Growing()

    @torch.no_grad()
    def update(key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not layer.is_initialized:
            layer.lazy_initialization(key_states, value_states)
            layer.keys, layer.values = key_states[:, :, :0], value_states[:, :, :0]
        layer.keys, layer.values = keys.add(layer.keys, key_states), values.add(layer.values, value_states)
        return layer.keys, layer.values

    def choose(rows: Tensor) -> None:
        if layer.get_seq_length() > 0:
            layer.keys, layer.values = keys.choose(layer.keys, rows), values.choose(layer.values, rows)

    return update, choose
