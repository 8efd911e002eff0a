"""Wan 2.1 and 2.2: video from text or an image; two experts (A14B), a time for each token (TI2V-5B)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, Generator


class Video(Generator):
    """A state (channels, frames, height, width); what an image conditions stands on further channels."""

    video = True

    def side(self) -> int:
        patch = self.pipeline.transformer.config.patch_size
        return max(16, self.pipeline.vae_scale_factor_spatial * (patch if isinstance(patch, int) else patch[-1]))

    def stride(self) -> int:
        return self.pipeline.vae_scale_factor_temporal

    def state_shape(self) -> tuple[int, ...]:
        config, spatial = self.pipeline.vae.config, self.pipeline.vae_scale_factor_spatial
        frames = (self.size.frames - 1) // self.stride() + 1
        channels = config.get("z_dim") or config.latent_channels
        return channels, frames, self.size.height // spatial, self.size.width // spatial

    def reference(self, raw: Tensor) -> Conditions:
        channels = self.state_shape()[0]
        return {"_channels": raw[:, channels:]} if raw.shape[1] > channels else {}

    def enter(self, x: Tensor, own: Conditions) -> Tensor:
        return torch.cat([x, own["_channels"]], 1) if "_channels" in own else x


class Wan(Video):
    modules = ("transformer", "transformer_2")

    def expert(self, clock: float) -> str:
        boundary = self.pipeline.config.boundary_ratio
        high = boundary is None or clock >= boundary * self.train_timesteps
        return "transformer" if high else "transformer_2"

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        if not self.pipeline.config.expand_timesteps:
            return clock
        patch = self.pipeline.transformer.config.patch_size
        tokens = (x.shape[3] // patch[1]) * (x.shape[4] // patch[2])
        return (clock[:, None] * self.clocked(x)).repeat_interleave(tokens, 1)

    def rate(self) -> float:
        return 24.0 if self.pipeline.config.expand_timesteps else super().rate()  # TI2V-5B

    def clocked(self, x: Tensor) -> Tensor:
        """(F,) 1 where a latent frame has the state's time, 0 where it is given."""
        return x.new_ones(x.shape[2])

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        mean, std = video_statistics(self.pipeline.vae, x)
        return self.decoded(x * std + mean)

    def clean(self, pixels: Tensor) -> Tensor:
        mean, std = video_statistics(self.pipeline.vae, pixels)
        return (self.encoded(pixels) - mean) / std


class WanImage(Wan):
    """The first frame on further channels: Wan 2.1, and 2.2 with two experts."""

    images = (1, 1)


class WanFirstFrame(WanImage):
    """Wan 2.2 TI2V-5B: the first latent frame is the image, at time 0; the state is the frames after it."""

    def state_shape(self) -> tuple[int, ...]:
        channels, frames, height, width = super().state_shape()
        return channels, frames - 1, height, width

    def reference(self, raw: Tensor) -> Conditions:
        return {"_first": raw[:, :, :1]}

    def enter(self, x: Tensor, own: Conditions) -> Tensor:
        return torch.cat([own["_first"], x], 2)

    def leave(self, out: Tensor, x: Tensor) -> Tensor:
        return out[:, :, 1:]

    def clocked(self, x: Tensor) -> Tensor:
        return (torch.arange(x.shape[2] + 1, device=x.device) > 0).to(x)

    def moving(self, latents: Tensor) -> Tensor:
        return latents[:, :, 1:]

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        return super().pixels(self.enter(x, {"_first": own["_first"].to(x)}), own)

    def clean(self, pixels: Tensor) -> Tensor:
        return self.moving(super().clean(pixels))


def video_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(1, C, 1, 1, 1) mean and standard deviation of the latents of such a VAE."""
    mean, std = (like.new_tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std


def wan_image(pipeline: object) -> type[WanImage]:
    """Which of the two an image-to-video pipeline is."""
    return WanFirstFrame if pipeline.config.expand_timesteps else WanImage  # type: ignore[attr-defined]
