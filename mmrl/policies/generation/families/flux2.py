"""FLUX.2-dev (guidance is an input) and FLUX.2-klein (guided unless distilled), with images to edit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.policies.generation.families.asking import Asked
from mmrl.policies.generation.families.base import ATTENTION_LAYERS, Conditions
from mmrl.policies.generation.families.tokens import Tokens

MOST_IMAGES = 10


class Flux2(Tokens):
    scale, embeds_guidance, images = "", True, (0, MOST_IMAGES)

    def _check_guidance(self, pipeline: Any, asked: Asked) -> None:
        super()._check_guidance(pipeline, asked)
        if asked.guided and not self.scale:
            raise ConfigError(
                f"guidance_scale={asked.guidance:g}: {type(pipeline).__name__} has no unconditional pass; its guidance "
                "is an input of the model: set embedded_guidance"
            )

    def targets(self, module: nn.Module) -> str | list[str]:
        """The single blocks, most of the model, fuse their projections."""
        double = "|".join(name.replace(".", r"\.") for name in ATTENTION_LAYERS)
        return rf".*\.({double}|to_qkv_mlp_proj)|.*single_transformer_blocks\.\d+\.attn\.to_out"

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        grid = x.transpose(1, 2).unflatten(2, (self.size.height // self.side(), -1))
        mean, spread = self._statistics(grid)
        return self.decoded(self.pipeline._unpatchify_latents(grid * spread + mean))

    def clean(self, pixels: Tensor) -> Tensor:
        grid = self.pipeline._patchify_latents(self.encoded(pixels))
        mean, spread = self._statistics(grid)
        return self.pipeline._pack_latents((grid - mean) / spread)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(1, C, 1, 1) mean and standard deviation of patches of latents, which its VAE keeps as a batch norm."""
        vae = self.pipeline.vae
        mean, variance = (v.view(1, -1, 1, 1) for v in (vae.bn.running_mean, vae.bn.running_var))
        return mean.to(like), torch.sqrt(variance + vae.config.batch_norm_eps).to(like)


class Flux2Klein(Flux2):
    """The pipeline's unconditional pass is always under an empty prompt."""

    scale, embeds_guidance, reads_negative = "guidance_scale", False, False

    def _check_guidance(self, pipeline: Any, asked: Asked) -> None:
        super()._check_guidance(pipeline, asked)
        if asked.guided and pipeline.config.is_distilled:
            raise ConfigError(f"guidance_scale={asked.guidance:g}: this FLUX.2-klein is distilled; set it to 1")
        if asked.guided and asked.negative:
            raise ConfigError("negative_prompt: the FLUX.2-klein pipeline reads none; leave it empty")
