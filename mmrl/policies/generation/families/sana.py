"""SANA: sizes as asked (no binning), a learned variance that is dropped, no instruction around the negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, Generator


class Sana(Generator):
    order = ("hidden_states",)

    def side(self) -> int:
        return 32

    def arguments(self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False) -> dict[str, Any]:
        given = {"use_resolution_binning": False} | super().arguments(prompt, media, negative=negative)
        return given | ({"complex_human_instruction": None} if negative else {})

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        return clock * self.pipeline.transformer.config.timestep_scale

    def leave(self, out: Tensor, x: Tensor) -> Tensor:
        return out[:, : x.shape[1]]

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        return self.decoded(x / self.pipeline.vae.config.scaling_factor)

    def clean(self, pixels: Tensor) -> Tensor:
        return self.encoded(pixels) * self.pipeline.vae.config.scaling_factor
