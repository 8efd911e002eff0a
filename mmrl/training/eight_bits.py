"""Moments in eight bits: blocks of 256 numbers, each a place in a table of 256 values times the block's largest.

The tables and kernels are bitsandbytes' (Dettmers et al., arXiv 2110.02861): dense near zero, and of one sign for
the second moment. A shard is packed by itself, so no rank asks another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError

BLOCK = 256
SMALLEST = 4096
"""Elements of a tensor that is worth packing; smaller ones (norms, biases) are the more sensitive, too."""


@dataclass
class Packed:
    """codes (n,) uint8, scales (blocks,) float32: a tensor of `shape`, this rank's shard of one."""

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    signed: bool

    def to(self, device: torch.device) -> Packed:
        return Packed(self.codes.to(device), self.scales.to(device), self.shape, self.signed)


def refuse_missing() -> None:
    """ConfigError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training.optimizer.name=8bit needs bitsandbytes, which is not installed: pip install 'mmrl[8bit]', or "
            "choose adamw or fused"
        )


def packed(moment: Tensor, signed: bool) -> Packed | Tensor:
    """The moment in eight bits; as it is where it is small."""
    from bitsandbytes.functional import quantize_blockwise

    here = moment.to_local() if hasattr(moment, "to_local") else moment
    if here.numel() < SMALLEST:
        return moment
    codes, state = quantize_blockwise(here.flatten(), code=_table(signed, here.device), blocksize=BLOCK)
    return Packed(codes, state.absmax, here.shape, signed)


def unpacked(value: Packed | Tensor, like: Tensor) -> Tensor:
    """The moment in float32, on the device it is kept on, in shards where `like` is sharded."""
    if not isinstance(value, Packed):
        return value
    from bitsandbytes.functional import dequantize_blockwise

    code = _table(value.signed, value.codes.device)
    flat = dequantize_blockwise(value.codes, absmax=value.scales, code=code, blocksize=BLOCK)
    local = flat.view(value.shape).float()
    if not hasattr(like, "device_mesh"):
        return local
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    return DTensor.from_local(
        local, sharded.device_mesh, sharded.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@cache
def _table(signed: bool, device: torch.device) -> Tensor:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed).to(device)
