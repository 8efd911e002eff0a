"""Z-Image and Z-Image-Turbo: texts as a list without padding, a clock that runs upwards, a guidance of its own form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, Generator


class ZImage(Generator):
    names, order, unguided = ("x", "t"), ("x", "t", "cap_feats"), 0.0

    def side(self) -> int:
        return 2 * self.pipeline.vae_scale_factor

    def state_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.transformer.in_channels, self.size.height // factor, self.size.width // factor

    def own_side(self) -> int:
        return 1024

    def enter(self, x: Tensor, own: Conditions) -> list[Tensor]:
        return list(x.unsqueeze(2))

    def leave(self, out: Any, x: Tensor) -> Tensor:
        return -torch.stack(list(out)).squeeze(2)

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        return (1000 - clock) / 1000

    def guide(self, given: Tensor, negative: Tensor, scale: float) -> Tensor:
        return given + scale * (given - negative)
