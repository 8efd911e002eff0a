"""Qwen-Image and its editors: guidance is rescaled to the norm of the conditional velocity, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrl.policies.generation.families.base import Conditions
from mmrl.policies.generation.families.tokens import Tokens
from mmrl.policies.generation.families.wan import video_statistics


class QwenImage(Tokens):
    scale, ragged = "true_cfg_scale", True

    def guide(self, given: Tensor, negative: Tensor, scale: float) -> Tensor:
        guided = super().guide(given, negative, scale)
        return guided * (given.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def collate(self, rows: Sequence[Conditions]) -> Conditions:
        """Texts of unequal length are padded, and masked then: the pipeline gives no mask for a single text."""
        together = super().collate(rows)
        if "encoder_hidden_states" not in together:
            return together
        lengths = torch.tensor([row["encoder_hidden_states"].shape[1] for row in rows])
        if bool((lengths != lengths[0]).any()):
            place = torch.arange(int(lengths.max()))
            mask = (place < lengths[:, None]).to(together["encoder_hidden_states"].device)
            together["encoder_hidden_states_mask"] = mask
        return together

    def pixels(self, x: Tensor, own: Conditions) -> Tensor:
        mean, std = video_statistics(self.pipeline.vae, x)
        return self.decoded(self.unpacked(x) * std + mean)[:, :, 0]

    def clean(self, pixels: Tensor) -> Tensor:
        mean, std = video_statistics(self.pipeline.vae, pixels)
        return self.packed(((self.encoded(pixels[:, :, None]) - mean) / std)[:, :, 0])


class QwenImageEdit(QwenImage):
    """The image is encoded with the text, and its latents follow the state's; always at a megapixel."""

    images = (1, 1)


class QwenImageEditPlus(QwenImage):
    images = (1, 8)
