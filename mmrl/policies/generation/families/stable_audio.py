"""Stable Audio 3: sound of a length given in seconds, `pipeline_options: {duration: 10}`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError, DataError, got
from mmrl.media import Sound
from mmrl.policies.generation.families.asking import Size, call_defaults
from mmrl.policies.generation.families.base import Conditions, Generator


class StableAudio3(Generator):
    """Duration stands in the conditions, as a token and as a global vector."""

    def side(self) -> int:
        return 1

    def sized(self) -> Size:
        for name in ("height", "width", "frames"):
            if getattr(self.asked, name) is not None:
                raise ConfigError(f"{name}={getattr(self.asked, name)}: sound has none; set pipeline_options.duration")
        if self.pipeline.scheduler.config.get("stochastic_sampling", False):
            raise ConfigError(
                "this Stable Audio 3 samples by ping-pong (stochastic_sampling), which draws noise of its own; "
                "load it with a scheduler whose stochastic_sampling is false"
            )
        return Size(1, 1)

    def _option(self, name: str) -> float:
        return float(self.asked.options.get(name, call_defaults(self.pipeline)[name]))

    def state_shape(self) -> tuple[int, ...]:
        vae = self.pipeline.vae
        seconds = self._option("duration") + self._option("silence_padding_duration")
        return vae.config.latent_dim, math.ceil(seconds * vae.config.sampling_rate / vae.downsampling_ratio)

    def targets(self, module: nn.Module) -> str | list[str]:
        return ["to_q", "to_kv", "to_qkv", "to_out"]

    def arguments(self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False) -> dict[str, Any]:
        return {"prompt": prompt, **self.asked.options}

    @torch.no_grad()
    def decode(self, x: Tensor, rows: Sequence[Mapping[str, Any]], *, tiles: bool | None = None) -> list[Any]:
        vae = self.pipeline.vae
        samples = int(self._option("duration") * vae.config.sampling_rate)
        waves = self.decoded(x)[..., :samples].clamp(-1, 1).cpu().numpy()
        return [Sound(wave, int(vae.config.sampling_rate)) for wave in waves]

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        raise NotImplementedError("sound has no pixels")

    def seen(self, output: Any, name: str) -> Tensor:
        """(channels, n) samples, and silence after them as long as the state is."""
        vae, whose = self.pipeline.vae, f"prompt {name!r}: a stored sound"
        if not isinstance(output, Sound):
            raise DataError(f"{whose}: expected a waveform, got {got(output)}")
        rate, samples = int(vae.config.sampling_rate), torch.from_numpy(output.samples)
        wanted = int(self._option("duration") * rate)
        if (output.rate, samples.shape[-1]) != (rate, wanted):
            raise DataError(
                f"{whose} has {samples.shape[-1]} samples, {output.rate} a second, and the policy draws {wanted}, "
                f"{rate} a second; set policy.pipeline_options.duration"
            )
        return nn.functional.pad(samples, (0, self.state_shape()[1] * vae.downsampling_ratio - wanted))

    def clean(self, pixels: Tensor) -> Tensor:
        return self.encoded(pixels)
