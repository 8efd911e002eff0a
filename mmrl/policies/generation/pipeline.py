"""What a flow policy uses of a diffusers pipeline besides the transformer: loading, text encoders, VAE."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.sharding import whole
from mmrl.precision import DTYPES


@dataclass
class TextEncoding:
    """One prompt as the transformer reads it: embeds (L, D), pooled (Q,)."""

    embeds: Tensor
    pooled: Tensor


class FrozenParts:
    """Text encoders and VAE of a `StableDiffusion3Pipeline`: they never train, and follow the transformer's device."""

    def __init__(self, pipeline: Any, config: FlowPolicyConfig):
        self.pipeline, self.config = pipeline, config
        self._texts: OrderedDict[str, TextEncoding] = OrderedDict()
        for part in self._modules():
            part.requires_grad_(False).eval()

    def _modules(self) -> list[Any]:
        names = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
        return [part for name in names if (part := getattr(self.pipeline, name)) is not None]

    def _settle(self, device: torch.device) -> None:
        for part in self._modules():
            if part.device != device:
                part.to(device)

    @torch.no_grad()
    def encode(self, text: str, device: torch.device) -> TextEncoding:
        """Embeddings of one text, kept while the cache has room.

        One at a time: they must not depend on which prompts were encoded together.
        """
        if text in self._texts:
            self._texts.move_to_end(text)
            return self._texts[text]
        self._settle(device)
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=[text], prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_sequence_length,
        )  # fmt: skip
        encoding = TextEncoding(embeds[0], pooled[0])
        self._texts[text] = encoding
        while len(self._texts) > self.config.text_cache:
            self._texts.popitem(last=False)
        return encoding

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Any]:
        """PIL images of `latents (N, C, H, W)`."""
        from PIL import Image

        self._settle(latents.device)
        vae, images = self.pipeline.vae, []
        dtype = next(vae.parameters()).dtype
        for chunk in latents.split(self.config.decode_batch):
            scaled = chunk / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
            pixels = vae.decode(scaled.to(dtype), return_dict=False)[0].float()
            pixels = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
            images += [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        return images


def load_pipeline(config: FlowPolicyConfig) -> Any:
    """The pipeline that `config.model` names, with the transformer of `config.transformer` where one is given."""
    from diffusers import DiffusionPipeline

    parts = {} if config.transformer is None else {"transformer": load_transformer(config)}
    try:
        # diffusers takes a part saved as absent, such as an SD3 without its T5, only if told again that it is
        listed = DiffusionPipeline.load_config(config.model)
        parts |= {name: None for name, kind in listed.items() if isinstance(kind, list | tuple) and kind[0] is None}
        return DiffusionPipeline.from_pretrained(config.model, dtype=DTYPES[config.dtype], **parts)
    except (OSError, ValueError) as error:
        alone = Path(config.model, "config.json").is_file() and not Path(config.model, "model_index.json").is_file()
        hint = "; is it a transformer alone? Name it in policy.transformer, and the pipeline in policy.model"
        problem = str(error).splitlines()[0] + (hint if alone else "")
        raise ConfigError(f"model: cannot load {config.model!r}: {problem}") from None


def load_transformer(config: FlowPolicyConfig) -> Any:
    """The transformer that `config` starts from."""
    from diffusers import SD3Transformer2DModel

    place = {} if config.transformer is not None else {"subfolder": "transformer"}
    source = config.transformer or config.model
    try:
        return SD3Transformer2DModel.from_pretrained(source, dtype=DTYPES[config.dtype], **place)
    except (OSError, ValueError) as error:
        raise ConfigError(f"transformer: cannot load {source!r}: {str(error).splitlines()[0]}") from None


def gathered(transformer: Any) -> Any:
    """A CPU copy of a transformer whose weights are held in shards. Every rank must call it."""
    from diffusers import SD3Transformer2DModel

    weights = {name: whole(value) for name, value in transformer.state_dict().items()}
    with torch.device("meta"):
        copy = SD3Transformer2DModel.from_config(transformer.config)
    copy.load_state_dict(weights, assign=True)
    return copy


def check_pipeline(pipeline: Any) -> None:
    from diffusers import SD3Transformer2DModel

    transformer = getattr(pipeline, "transformer", None)
    if not isinstance(transformer, SD3Transformer2DModel):
        raise ConfigError(
            f"model: {type(pipeline).__name__} with a {type(transformer).__name__}; the flow policy trains pipelines "
            "of the StableDiffusion3 family (SD3Transformer2DModel)"
        )


def latent_shape(pipeline: Any, config: FlowPolicyConfig) -> tuple[int, int, int]:
    """(channels, height, width) of the latents."""
    scale, patch = pipeline.vae_scale_factor, pipeline.patch_size
    default = pipeline.default_sample_size * scale
    sides = {"height": config.height or default, "width": config.width or default}
    for name, side in sides.items():
        if side % (scale * patch):
            nearest = max(1, round(side / (scale * patch))) * scale * patch
            raise ConfigError(f"{name}={side}: expected a multiple of {scale * patch}; the nearest is {nearest}")
    return (pipeline.transformer.config.in_channels, sides["height"] // scale, sides["width"] // scale)
