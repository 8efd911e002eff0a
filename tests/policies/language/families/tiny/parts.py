"""What the tiny families share: a tokenizer, a chat template, pictures, fan-in weights. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import mmrl  # noqa: F401  (torchvision beside a CPU torch needs its operators declared first)

RECIPES: dict[str, Callable[..., tuple[Any, Any]]] = {}
"""name -> () -> (model, processor)"""

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
SIGLIP_TOWER = SIGLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
CLIP_TOWER = SIGLIP | {"model_type": "clip_vision_model", "projection_dim": 32}
HYBRID = {
    "head_dim": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
PIXELS = {"shortest_edge": 1024, "longest_edge": 65536}
TILES = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]


def recipe(build: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Twice the same: what `finished` leaves is drawn by transformers."""

    def made(**variant: Any) -> tuple[Any, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(**variant)

    RECIPES[build.__name__] = made
    return made


def rope(*section: int, **more: Any) -> dict[str, Any]:
    sections = {"mrope_section": list(section)} if section else {}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | sections | more}


def tokenizer(
    specials: list[str], template: str, *, bos: str | None = None, named: dict[str, str] | None = None
) -> Any:
    """One token a byte (merges would break ties anew in every process); those of `named` become attributes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = named or {}
    special = dict.fromkeys(["<pad>", "<eos>", *([bos] if bos else []), "<turn>", *specials, *named.values()])
    known = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>", bos_token=bos, padding_side="left",
        model_max_length=100000, additional_special_tokens=["<turn>", *specials], extra_special_tokens=named,
        chat_template=template,
    )  # fmt: skip


def chat(image: str = "<image>", video: str = "<video>", *, pictures_first: bool = False) -> str:
    """A template that writes `image` and `video` for each medium, where its part stands."""
    body = (
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}" + image
        + "{%- elif part['type'] == 'video' -%}" + video
        + "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}"
    )  # fmt: skip
    if pictures_first:
        body = (
            "{%- for part in message['content'] if part['type'] == 'image' -%}" + image + "{%- endfor -%}"
            "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
        )
    return (
        "{%- for message in messages -%}<turn>{{ message['role'] }}\n{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}" + body + "{% endif %}<eos>{%- endfor -%}"
        "{%- if add_generation_prompt %}<turn>assistant\n{% endif -%}"
    )


def picture(width: int, height: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


def of(tok: Any) -> dict[str, Any]:
    """What a text configuration takes from its tokenizer."""
    return {
        "vocab_size": len(tok), "pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id,
        "bos_token_id": tok.bos_token_id,
    }  # fmt: skip


def finished(model: Any, tok: Any, seed: int = 0) -> Any:
    """Every matrix N(0, 1 / fan in), token embeddings .3, norms as they are, gates that start closed opened: the
    default weights give nearly uniform outputs, on which a wrong picture does not show."""
    model.generation_config.eos_token_id = tok.eos_token_id
    model.generation_config.pad_token_id = tok.pad_token_id
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2 or p.numel() == max(p.shape):
                _small(name, p, generator)
                continue
            fan = p.shape[-1] if "expert" in name and p.dim() == 3 else p[0].numel()
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if id(p) in embeddings else fan**-0.5))
    return model.eval()


def _small(name: str, p: Any, generator: torch.Generator) -> None:
    """Vectors and scalars."""
    if name.endswith("scaling.bias"):
        p.fill_(1.0)
    elif name.endswith("bias"):
        p.zero_()
    elif ("gate" in name and p.numel() == 1) or name.endswith("alpha"):
        p.fill_(0.7)
    elif "layer_scale" in name or "lambda_" in name:
        p.fill_(1.0)
    elif p.dim() >= 2:
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3)


def sliced() -> tuple[Any, str, dict[str, int]]:
    """What the MiniCPM-V share: a tokenizer that names the marks of slices, its template, and the sizes of slices."""
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {f"{name}_start_token": f"<{name}>" for name in ("image", "slice", "image_id")}
    named |= {f"{name}_end_token": f"</{name}>" for name in ("image", "slice", "image_id")}
    template = chat("<|image_pad|>", "<|video_pad|>")
    sizes = {"patch_size": 8, "scale_resolution": 64, "max_slice_nums": 4}
    return tokenizer([], template, named=named), template, sizes
