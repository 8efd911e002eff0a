"""HunyuanVideo (guidance is an input) and HunyuanVideo-1.5 (guidance is a component of the pipeline)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.policies.generation.families.asking import Asked
from mmrl.policies.generation.families.base import Conditions
from mmrl.policies.generation.families.wan import Video


class HunyuanVideo(Video):
    scale, embeds_guidance, fps = "true_cfg_scale", True, 24.0

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        return self.decoded(x / self.pipeline.vae.config.scaling_factor)

    def clean(self, pixels: Tensor) -> Tensor:
        return self.encoded(pixels) * self.pipeline.vae.config.scaling_factor


class HunyuanVideo15(Video):
    """Two text streams, empty image tokens, condition channels after the state."""

    scale, fps = "", 24.0

    def _check_guidance(self, pipeline: Any, asked: Asked) -> None:
        super()._check_guidance(pipeline, asked)
        plain = self._guider(asked.guidance).config
        odd = [n for n, v in pipeline.guider.config.items() if n in plain and n != "guidance_scale" and v != plain[n]]
        odd = [n for n in odd if n not in ("enabled", "_use_default_values")]
        if asked.guided and (type(pipeline.guider).__name__ != "ClassifierFreeGuidance" or odd):
            raise ConfigError(
                f"guidance_scale={asked.guidance:g}: this pipeline guides by {type(pipeline.guider).__name__}"
                f"{' with ' + ', '.join(odd) if odd else ''}; mmrl knows plain ClassifierFreeGuidance; set it to 1"
            )

    def _guider(self, scale: float, enabled: bool = True) -> Any:
        from diffusers.guiders import ClassifierFreeGuidance

        return ClassifierFreeGuidance(guidance_scale=scale, enabled=enabled)

    def parts(self, guided: bool) -> dict[str, Any]:
        return {"guider": self._guider(self.asked.guidance, enabled=guided)}

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        scale = self.pipeline.vae.config.scaling_factor
        return torch.cat([self.decoded(row[None] / scale) for row in x])  # its attention mask fits one row

    def clean(self, pixels: Tensor) -> Tensor:
        scale = self.pipeline.vae.config.scaling_factor
        return torch.cat([self.encoded(row[None]) * scale for row in pixels])
