"""Weights that FSDP2 keeps in shards, whole for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def is_sharded(module: nn.Module) -> bool:
    """Whether any weight is held in shards."""
    return any(is_sharded_tensor(p) for p in module.parameters())


def is_sharded_tensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


@contextmanager
def whole_weights(module: nn.Module, methods: tuple[str, ...] = ()) -> Iterator[None]:
    """Every parameter gathered on every rank inside the block; nothing to do without FSDP2.

    Ranks then run as many forward passes as they like: decoding stops at different steps, and a gather in each
    pass would wait for ranks that are already done.

    methods  of `module` that run parts of it besides `forward`
    """
    if not is_sharded(module):
        yield
        return
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    for name in methods:
        if name not in vars(module):
            register_fsdp_forward_method(module, name)
    parts = [m for m in module.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not module, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, its shards gathered. Every rank must call it."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).cpu()


def plain_name(name: str) -> str:
    """A parameter's name without what checkpointed or compiled blocks put into it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def writes_files() -> bool:
    """Only the first rank does."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
