"""Lumina 2: a system prompt that the negative prompt goes without, and guidance rescaled along the width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, Generator

FACTOR = 8
"""Pixels a latent; the pipeline's own arithmetic has it fixed."""


class Lumina2(Generator):
    def side(self) -> int:
        return 2 * FACTOR

    def state_shape(self) -> tuple[int, ...]:
        return self.pipeline.transformer.config.in_channels, self.size.height // FACTOR, self.size.width // FACTOR

    def arguments(self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False) -> dict[str, Any]:
        given = super().arguments(prompt, media, negative=negative)
        if not negative:
            return given
        limit = {n: v for n, v in given.items() if n == "max_sequence_length"}
        embeds, mask = self.pipeline._get_gemma_prompt_embeds([prompt], **limit)
        return given | {"prompt": None, "prompt_embeds": embeds, "prompt_attention_mask": mask}

    def time(self, clock: Tensor, x: Tensor, own: Conditions) -> Tensor:
        return 1 - clock / self.train_timesteps

    def leave(self, out: Tensor, x: Tensor) -> Tensor:
        return -out

    def guide(self, given: Tensor, negative: Tensor, scale: float) -> Tensor:
        guided = super().guide(given, negative, scale)
        return guided * (given.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
