"""What FLUX.1, FLUX.2, Qwen-Image and Chroma share: a packed state (tokens, channels), reference tokens after it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, Generator


class Tokens(Generator):
    """2 x 2 latent pixels a token; the time input runs from 1 to 0."""

    def side(self) -> int:
        return 2 * self.pipeline.vae_scale_factor

    def state_shape(self) -> tuple[int, ...]:
        tokens = (self.size.height // self.side()) * (self.size.width // self.side())
        return tokens, self.pipeline.transformer.config.in_channels

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        return clock / 1000

    def reference(self, raw: Tensor) -> Conditions:
        tokens = self.state_shape()[0]
        return {"_after": raw[:, tokens:]} if raw.shape[1] > tokens else {}

    def enter(self, x: Tensor, own: Conditions) -> Tensor:
        return torch.cat([x, own["_after"]], 1) if "_after" in own else x

    def leave(self, out: Tensor, x: Tensor) -> Tensor:
        return out[:, : x.shape[1]]

    def unpacked(self, x: Tensor) -> Tensor:
        pipe, size = self.pipeline, self.size
        return pipe._unpack_latents(x, size.height, size.width, pipe.vae_scale_factor)

    def packed(self, z: Tensor) -> Tensor:
        """A state of latents (N, C, H, W)."""
        return self.pipeline._pack_latents(z, *z.shape)

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        return super().pixels(self.unpacked(x), own)

    def clean(self, pixels: Tensor) -> Tensor:
        return self.packed(super().clean(pixels))
