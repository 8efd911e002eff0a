"""The models that are measured: real sizes, random weights, built on the device from classes alone; or their tiny kin.

Widths and depths are those of the published configurations: Qwen/Qwen2.5-VL-3B-Instruct,
stabilityai/stable-diffusion-3.5-medium and Wan-AI/Wan2.1-T2V-1.3B-Diffusers. Text encoders of the generators have
their widths and one layer: they run once a prompt, and are not what is measured. Tokenizers are those of the tiny
bases, so a prompt is shorter than a real one by some words; pixels and latents are as many as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import mmrl  # noqa: F401  (before transformers and diffusers)

QWEN_TEXT = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128_000, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
QWEN_VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    "out_hidden_size": 2048, "tokens_per_second": 2, "hidden_act": "silu",
}  # fmt: skip
SD3_MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
WAN_1_3B = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
}  # fmt: skip
PATCH_AREA = 28 * 28
"""Pixels that become one token of Qwen2.5-VL."""


@contextmanager
def built_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Modules made in the block have their random weights drawn on the device, in that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def qwen_processor() -> Any:
    """`Qwen2_5_VLProcessor` with the tiny bases' tokenizer and the published patches; any number of pixels."""
    import transformers as tf

    from mmrl.pipelines.bases.models import tiny_processor

    words = tiny_processor("qwen2_5_vl")
    pixels = {"shortest_edge": PATCH_AREA, "longest_edge": 16_384 * PATCH_AREA}
    sizes = {name: QWEN_VISION[name] for name in ("patch_size", "temporal_patch_size")}
    sizes["merge_size"] = QWEN_VISION["spatial_merge_size"]
    images = tf.Qwen2VLImageProcessor(size=pixels, **sizes)
    videos = tf.Qwen2VLVideoProcessor(size=pixels, cap_pixels_per_frame=False, min_frames=2, **sizes)
    words.tokenizer.model_max_length = QWEN_TEXT["max_position_embeddings"]
    return tf.Qwen2_5_VLProcessor(images, words.tokenizer, videos, chat_template=words.chat_template)


def qwen_config(tokenizer: Any, size: str) -> Any:
    """The published configuration with our tokenizer's special ids; `tiny`: 2 narrow layers of the same kinds."""
    from transformers import Qwen2_5_VLConfig

    text, vision = dict(QWEN_TEXT), dict(QWEN_VISION)
    if size == "tiny":
        rope = {**QWEN_TEXT["rope_parameters"], "mrope_section": [4, 6, 6]}
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"vocab_size": 2048, "num_key_value_heads": 1, "rope_parameters": rope}
        vision |= {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64}
        vision["fullatt_block_indexes"] = [1]
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return Qwen2_5_VLConfig(text_config=text | ends, vision_config=vision, tie_word_embeddings=True, **ids)


def qwen(size: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """`Qwen2_5_VLForConditionalGeneration` with random weights, and its processor."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    processor = qwen_processor()
    config = qwen_config(processor.tokenizer, size)
    with built_on(device, dtype):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model.eval(), processor


def sd3_medium(size: str, device: str, dtype: torch.dtype) -> Any:
    """`StableDiffusion3Pipeline` around the transformer of 3.5 medium, or the tiny base's."""
    import diffusers
    import transformers as tf

    from mmrl.pipelines.bases.models import tiny_flow
    from mmrl.pipelines.bases.tokenizers import clip_tokenizer, t5_tokenizer

    if size == "tiny":
        return tiny_flow(0).to(dtype=dtype)
    tokenizer, tokenizer_3 = clip_tokenizer(77), t5_tokenizer(256)
    with built_on(device, dtype):
        encoders = [
            tf.CLIPTextModelWithProjection(tf.CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
                num_hidden_layers=2, num_attention_heads=width // 64, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )) for width in (768, 1280)
        ]  # fmt: skip
        t5 = tf.T5EncoderModel(_t5_config(tf.T5Config, tokenizer_3))
        transformer = diffusers.SD3Transformer2DModel(**SD3_MEDIUM)
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, sample_size=1024,
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], text_encoder_3=t5,
        tokenizer=tokenizer, tokenizer_2=clip_tokenizer(77), tokenizer_3=tokenizer_3,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def wan_1_3b(size: str, device: str, dtype: torch.dtype) -> Any:
    """`WanPipeline` around the transformer of 2.1 T2V 1.3B; `tiny`: 2 narrow blocks of it and a small VAE."""
    import diffusers
    import transformers as tf

    from mmrl.pipelines.bases.tokenizers import t5_tokenizer

    transformer, vae, tokenizer = dict(WAN_1_3B), {}, t5_tokenizer(512)
    if size == "tiny":
        narrow = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
        transformer |= {**narrow, "text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2}
        vae = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
        vae |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    with built_on(device, dtype):
        encoder = tf.UMT5EncoderModel(_t5_config(tf.UMT5Config, tokenizer, transformer["text_dim"]))
        parts = {"transformer": diffusers.WanTransformer3DModel(**transformer)}
        parts["vae"] = diffusers.AutoencoderKLWan(**vae)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.WanPipeline(tokenizer=tokenizer, text_encoder=encoder, scheduler=scheduler, **parts)


def _t5_config(kind: Any, tokenizer: Any, width: int = 4096) -> Any:
    return kind(
        vocab_size=len(tokenizer), d_model=width, d_kv=max(width // 64, 8), d_ff=2 * width, num_layers=1,
        num_heads=max(width // 64, 2), is_encoder_decoder=False, dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
