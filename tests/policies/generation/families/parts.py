"""Tiny parts of pipelines: tokenizers, text encoders, autoencoders; random weights that tell prompts apart."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from mmrl.pipelines.bases.models import fan_in_init
from mmrl.pipelines.bases.tokenizers import chat_tokenizer, clip_tokenizer, t5_tokenizer

diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()

TEMPLATE = """{%- for m in messages -%}<|im_start|>{{ m['role'] }}
{% if m['content'] is string %}{{ m['content'] }}{% else %}{%- for p in m['content'] -%}
{%- if p['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ p['text'] }}{%- endif -%}
{%- endfor -%}{% endif %}<|im_end|>
{% endfor -%}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""

FLUX_SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
QWEN_SHIFT = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift": 1.0, "shift_terminal": 0.02,
}  # fmt: skip
STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.7, 1.0]}


def euler(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def seeded(pipeline: Any, seed: int = 0) -> Any:
    """Fan-in weights in every part, and none all zero: a modulation table of zeros would hide what it multiplies."""
    generator = torch.Generator().manual_seed(seed)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            fan_in_init(part.eval(), seed)
            with torch.no_grad():
                for parameter in part.parameters():
                    if parameter.abs().sum() == 0:
                        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_vae(channels: int = 4, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=channels, sample_size=32,
        mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=0.3611, shift_factor=0.1159, **options,
    )  # fmt: skip


def t5(width: int = 32, length: int = 32, kind: str = "T5") -> tuple[Any, Any]:
    tokenizer = t5_tokenizer(length)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_encoder_decoder=False,
        dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer, getattr(transformers, f"{kind}EncoderModel")(config)


def clip(length: int = 16) -> tuple[Any, Any]:
    tokenizer = clip_tokenizer(length)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, transformers.CLIPTextModel(config)


def chat_text(layers: int = 2) -> tuple[Any, dict[str, Any]]:
    """A chat tokenizer, and the configuration of a small language model for it."""
    tokenizer = chat_tokenizer(TEMPLATE)
    return tokenizer, {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
    }  # fmt: skip


def qwen_vl() -> tuple[Any, Any]:
    tokenizer, text = chat_text()
    text = {n: v for n, v in text.items() if n != "head_dim"} | {"max_position_embeddings": 8192}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0],
        "window_size": 112, "tokens_per_second": 4, "hidden_act": "silu",
    }  # fmt: skip
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ids |= {f"vision_{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{n}|>") for n in ("start", "end")}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return tokenizer, transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen_processor(tokenizer: Any) -> Any:
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    images, videos = transformers.Qwen2VLImageProcessor(size=sizes), transformers.Qwen2VLVideoProcessor()
    return transformers.Qwen2VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)
