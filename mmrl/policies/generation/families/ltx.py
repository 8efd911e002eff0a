"""LTX-Video from text and from an image: a packed state; an image is the tokens of the first frame, at time 0."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.generation.families.base import Conditions, Generator


class LTX(Generator):
    video = True

    def side(self) -> int:
        return max(32, self.pipeline.vae_spatial_compression_ratio)

    def stride(self) -> int:
        return self.pipeline.vae_temporal_compression_ratio

    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        spatial = self.pipeline.vae_spatial_compression_ratio
        frames = (self.size.frames - 1) // self.stride() + 1
        return frames, self.size.height // spatial, self.size.width // spatial

    def state_shape(self) -> tuple[int, ...]:
        frames, rows, columns = self.grid()
        return frames * rows * columns, self.pipeline.transformer.config.in_channels

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        pipe, vae = self.pipeline, self.pipeline.vae
        if vae.config.timestep_conditioning:
            raise PolicyError("this LTX-Video decodes with noise and a time of its own, which mmrl does not do yet")
        z = pipe._unpack_latents(x, *self.grid(), *self.patches())
        z = pipe._denormalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        return vae.decode(z.to(next(vae.parameters()).dtype), None, return_dict=False)[0].float()

    def patches(self) -> tuple[int, int]:
        """Sides and frames of a patch."""
        return self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size

    def clean(self, pixels: Tensor) -> Tensor:
        pipe, vae = self.pipeline, self.pipeline.vae
        z = self.encoded(pixels)
        z = pipe._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        return pipe._pack_latents(z, *self.patches())


class LTXImage(LTX):
    """The state is the tokens after the first frame's."""

    images = (1, 1)

    def given(self) -> int:
        """Tokens of the first frame."""
        _, rows, columns = self.grid()
        return rows * columns

    def state_shape(self) -> tuple[int, ...]:
        tokens, channels = super().state_shape()
        return tokens - self.given(), channels

    def reference(self, raw: Tensor) -> Conditions:
        return {"_first": raw[:, : self.given()]}

    def enter(self, x: Tensor, own: Conditions) -> Tensor:
        return torch.cat([own["_first"], x], 1)

    def leave(self, out: Tensor, x: Tensor) -> Tensor:
        return out[:, -x.shape[1] :]

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        tokens = torch.arange(x.shape[1] + self.given(), device=x.device)
        return clock[:, None] * (tokens >= self.given())

    def moving(self, latents: Tensor) -> Tensor:
        """The pipeline steps the frames after the first, unpacked."""
        if latents.dim() == 3:
            return latents[:, self.given() :]
        return self.pipeline._pack_latents(latents, *self.patches())

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        return super().pixels(self.enter(x, {"_first": own["_first"].to(x)}), own)

    def clean(self, pixels: Tensor) -> Tensor:
        return self.moving(super().clean(pixels))
