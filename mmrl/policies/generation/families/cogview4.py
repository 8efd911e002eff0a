"""CogView4: texts padded on the left without a mask, so rows share a forward only at equal text length."""

from __future__ import annotations

from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, Generator


class CogView4(Generator):
    def side(self) -> int:
        return max(16, super().side())

    def own_side(self) -> int:
        return self.pipeline.transformer.config.sample_size * self.pipeline.vae_scale_factor

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        return self.decoded(x / self.pipeline.vae.config.scaling_factor)  # the pipeline ignores a shift

    def clean(self, pixels: Tensor) -> Tensor:
        return self.encoded(pixels) * self.pipeline.vae.config.scaling_factor
