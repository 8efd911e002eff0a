"""An exponential moving average of what training changes, for evaluation and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.settings import Section


class AverageConfig(Section):
    """decay  the largest weight of the past; every: optimizer steps between updates. Flow-GRPO: .9 and 8"""

    decay: float = Field(0.9, gt=0, lt=1)
    every: int = Field(8, ge=1)


class WeightAverage:
    """value <- d value + (1 - d) parameter every few optimizer steps, d = min((1 + n) / (10 + n), decay) after n.

    Parameters are looked up by name each time: preparing a module for training may replace them.
    """

    def __init__(self, config: AverageConfig):
        self.config = config
        self.updates = 0
        self.values: dict[str, Tensor] = {}

    def start(self, module: nn.Module) -> None:
        """Take the weights as they are, unless the average runs already."""
        if not self.values:
            self.values = {name: p.detach().clone() for name, p in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Called after every optimizer step."""
        self.start(module)
        self.updates += 1
        if self.updates % self.config.every:
            return
        decay = min((1 + self.updates) / (10 + self.updates), self.config.decay)
        for name, parameter in _trained(module):
            self.values[name].mul_(decay).add_(parameter.detach(), alpha=1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The averaged weights inside the block, the trained ones after it."""
        self.start(module)
        kept = {name: p.detach().clone() for name, p in _trained(module)}
        _put(module, self.values)
        try:
            yield
        finally:
            _put(module, kept)


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


@torch.no_grad()
def _put(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in _trained(module):
        parameter.copy_(values[name])
