"""A pipeline's own preparation, without its denoising: the arguments of its first transformer call.

The real pipeline is never interrupted. A second object holds the same components, a scheduler of its own, and a
stand-in for each transformer, which notes its arguments and raises. Text, masks, ids, guidance inputs, reference
latents and the scheduler's times are then the pipeline's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmrl.errors import PolicyError


class CapturedError(Exception):
    """Ends a pipeline call where its denoising would begin. Not an error of anyone's."""


class StandIn(nn.Module):
    """Looks like a transformer to the pipeline that prepares its inputs; holds no weights of its own."""

    def __init__(self, real: Any):
        super().__init__()
        object.__setattr__(self, "real", real)  # not a submodule: `to` must not move it
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @property
    def dtype(self) -> torch.dtype:
        dtype = getattr(self.real, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else next(self.real.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.real.parameters()).device

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "real"), name)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((args, kwargs))
        raise CapturedError


def twin_of(pipeline: Any, parts: Mapping[str, Any] | None = None) -> Any:
    """A second object of the pipeline: the same components but for `parts`, and a scheduler of its own.

    A shallow copy keeps what users set on the pipeline after it was made. The parts go around the pipeline's own
    `__setattr__`, which writes their classes into its configuration.
    """
    twin = copy.copy(pipeline)
    twin.__dict__["scheduler"] = copy.deepcopy(pipeline.scheduler)
    twin.__dict__.update(parts or {})
    twin.set_progress_bar_config(disable=True)
    return twin


@torch.no_grad()
def first_call(
    pipeline: Any, modules: Sequence[str], arguments: Mapping[str, Any], parts: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """`(args, kwargs)` of the pipeline's first call of one of its `modules`, and the scheduler as it was set.

    parts  components in place of the pipeline's, such as a guider that is off
    """
    stands = {name: StandIn(real) for name in modules if (real := getattr(pipeline, name, None)) is not None}
    twin = twin_of(pipeline, {**(parts or {}), **stands})
    try:
        twin(**arguments)
    except CapturedError:
        pass
    finally:
        twin.maybe_free_model_hooks()
    calls = [call for stand in stands.values() for call in stand.calls]
    if not calls:
        raise PolicyError(f"{type(pipeline).__name__} never called {' or '.join(modules)}: nothing to capture")
    return *calls[0], twin.scheduler
