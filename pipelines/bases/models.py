"""Real model classes, built tiny: what the bases are trained from, and what tests of the policies run on.

    tiny_vlm("qwen3_vl" | "qwen2_5_vl", seed) -> (model, processor)      about 1 M parameters
    tiny_flow(seed) -> StableDiffusion3Pipeline                          about 1 M parameters

Every matrix is drawn with standard deviation 1 / sqrt(fan in). The usual 0.02 leaves so small a model with
nearly uniform outputs: it learns half as fast, and tests on it cannot see a wrong image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import mmrl  # noqa: F401  (torchvision beside a CPU torch needs its operators declared first)
from mmrl.errors import ConfigError, unknown
from mmrl.pipelines.bases.tokenizers import chat_tokenizer, clip_tokenizer, t5_tokenizer
from mmrl.randomness import Key

IMAGE_SIZE = 64
PATCH, MERGE, TEMPORAL_PATCH = 8, 2, 2

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' -%}VIDEO
{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
# Qwen3-VL's processor writes vision_start and vision_end around each of a clip's frames itself.
CHAT_TEMPLATES = {
    "qwen3_vl": CHAT_TEMPLATE.replace("VIDEO", "<|video_pad|>"),
    "qwen2_5_vl": CHAT_TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"),
}


def fan_in_init(module: nn.Module, seed: int) -> None:
    """Redraw every weight matrix with std 1/sqrt(fan in), embeddings with 0.02, from a keyed generator.

    The vision tower's position embeddings get std 1: they are added to patch features of that size, and
    drowned in them a small model never learns where things are. Norms keep their ones, biases become zero.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() < 2:
                if name.endswith("bias"):
                    parameter.zero_()
                continue
            std = 0.02 if id(parameter) in embeddings else parameter[0].numel() ** -0.5
            std = 1.0 if name.endswith("visual.pos_embed.weight") else std
            parameter.copy_(Key(seed, purpose=f"init {name}").normal(*parameter.shape) * std)


def tiny_processor(family: str = "qwen3_vl", extra: Sequence[str] = ()) -> Any:
    """`Qwen3VLProcessor` or `Qwen2_5_VLProcessor` with our tokenizer and 64 x 64 images as 16 tokens.

    extra  pieces of text that get a token beside the worlds' words
    """
    import transformers as tf

    if family not in CHAT_TEMPLATES:
        raise ConfigError(unknown("family of tiny models", family, CHAT_TEMPLATES))
    template = CHAT_TEMPLATES[family]
    tokenizer = chat_tokenizer(template, extra)
    pixels = {"shortest_edge": IMAGE_SIZE**2 // 4, "longest_edge": 16 * IMAGE_SIZE**2}
    # For videos the limits cover all frames of a clip together.
    volume = {"shortest_edge": IMAGE_SIZE**2 // 4, "longest_edge": 64 * IMAGE_SIZE**2}
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL_PATCH}
    images = tf.Qwen2VLImageProcessor(size=pixels, **sizes)
    if family == "qwen3_vl":
        videos = tf.Qwen3VLVideoProcessor(size=volume, cap_pixels_per_frame=False, min_frames=2, **sizes)
        return tf.Qwen3VLProcessor(images, tokenizer, videos, chat_template=template)
    videos = tf.Qwen2VLVideoProcessor(size=volume, cap_pixels_per_frame=False, min_frames=2, **sizes)
    return tf.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template)


def tiny_vlm(
    family: str = "qwen3_vl", seed: int = 0, *, hidden: int = 128, layers: int = 2, vision_hidden: int = 64,
    extra: Sequence[str] = (),
) -> tuple[Any, Any]:  # fmt: skip
    """A Qwen3-VL or Qwen2.5-VL model with fan-in weights, and its processor.

    hidden         of the text model; 4 heads, 2 key-value heads
    layers         of the text model
    vision_hidden  of the vision tower, 2 blocks deep
    extra          pieces of text that get a token beside the worlds' words
    """
    builders = {"qwen3_vl": build_tiny_qwen3_vl, "qwen2_5_vl": build_tiny_qwen2_5_vl}
    processor = tiny_processor(family, extra)
    model = builders[family](processor.tokenizer, hidden=hidden, layers=layers, vision_hidden=vision_hidden)
    fan_in_init(model, seed)
    return model.eval(), processor


def build_tiny_qwen3_vl(tokenizer: Any, *, hidden: int = 128, layers: int = 2, vision_hidden: int = 64) -> Any:
    """`Qwen3VLForConditionalGeneration` over `tokenizer`; weights as transformers draws them."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = _text_config(tokenizer, hidden, layers) | {"head_dim": hidden // 4}
    text["rope_parameters"]["mrope_interleaved"] = True
    vision = _vision_config(hidden, vision_hidden) | {
        "num_position_embeddings": (IMAGE_SIZE // PATCH) ** 2,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_token_ids(tokenizer))
    return _with_generation_defaults(Qwen3VLForConditionalGeneration(config), tokenizer)


def build_tiny_qwen2_5_vl(tokenizer: Any, *, hidden: int = 128, layers: int = 2, vision_hidden: int = 64) -> Any:
    """`Qwen2_5_VLForConditionalGeneration` over `tokenizer`; one windowed and one full vision block."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = _vision_config(hidden, vision_hidden) | {
        "fullatt_block_indexes": [1],
        "window_size": 2 * PATCH * MERGE,
        "tokens_per_second": 4,
        "hidden_act": "silu",
    }
    text = _text_config(tokenizer, hidden, layers)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_token_ids(tokenizer))
    return _with_generation_defaults(Qwen2_5_VLForConditionalGeneration(config), tokenizer)


def _text_config(tokenizer: Any, hidden: int, layers: int) -> dict[str, Any]:
    half = hidden // 4 // 2  # half of a head: the three mrope sections must add up to it
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision_config(hidden: int, vision_hidden: int) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": vision_hidden,
        "intermediate_size": 2 * vision_hidden,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "out_hidden_size": hidden,
    }


def _token_ids(tokenizer: Any) -> dict[str, Any]:
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    return ids | {"tie_word_embeddings": False}


def _with_generation_defaults(model: Any, tokenizer: Any) -> Any:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


CAPTION_LENGTH = 16


def tiny_flow(seed: int = 0, *, hidden: int = 96, layers: int = 3, latent_channels: int = 4) -> Any:
    """A `StableDiffusion3Pipeline` with fan-in weights and all its parts: diffusers reloads no other kind.

    Ask for `max_sequence_length=CAPTION_LENGTH` when prompts are encoded; the pipeline's default of 256 pads
    the T5 half of the prompt with 240 tokens more than these models are trained on.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer, tokenizer_3 = clip_tokenizer(CAPTION_LENGTH), t5_tokenizer(CAPTION_LENGTH)
    parts = {
        "transformer": build_tiny_sd3(hidden=hidden, layers=layers, latent_channels=latent_channels),
        "vae": build_tiny_vae(latent_channels),
        "text_encoder": build_tiny_clip_text(tokenizer),
        "text_encoder_2": build_tiny_clip_text(tokenizer),
        "text_encoder_3": build_tiny_t5(tokenizer_3),
    }
    for name, part in parts.items():
        fan_in_init(part.eval(), Key(seed, purpose=name).number)
    return StableDiffusion3Pipeline(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(CAPTION_LENGTH),
        tokenizer_3=tokenizer_3,
        image_encoder=None,
        feature_extractor=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


LATENT_SIZE = 12
TEXT_HIDDEN = 48


def build_tiny_sd3(*, hidden: int = 96, layers: int = 3, latent_channels: int = 4) -> Any:
    """`SD3Transformer2DModel` on 12 x 12 latents, 2 x 2 of them a token."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=layers,
        attention_head_dim=24,
        num_attention_heads=hidden // 24,
        caption_projection_dim=hidden,
        joint_attention_dim=2 * TEXT_HIDDEN,
        pooled_projection_dim=2 * TEXT_HIDDEN,
        pos_embed_max_size=LATENT_SIZE // 2,
    )


def build_tiny_vae(latent_channels: int = 4) -> Any:
    """`AutoencoderKL` from 3 x 24 x 24 pixels to `latent_channels` x 12 x 12."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=latent_channels,
        sample_size=2 * LATENT_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_tiny_clip_text(tokenizer: Any) -> Any:
    """`CLIPTextModelWithProjection`, two layers: the pipeline reads the last but one."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_HIDDEN,
        intermediate_size=2 * TEXT_HIDDEN,
        projection_dim=TEXT_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_tiny_t5(tokenizer: Any) -> Any:
    """`T5EncoderModel`, one layer, as wide as the transformer's joint attention input."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=2 * TEXT_HIDDEN,
        d_kv=TEXT_HIDDEN // 2,
        d_ff=2 * TEXT_HIDDEN,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)
