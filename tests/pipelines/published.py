"""Folders of configurations alone, with the dimensions that were published: what `mmrl plan` counts without weights.

The dimensions are those of the configurations beside the weights of stabilityai/stable-diffusion-3.5-medium,
black-forest-labs/FLUX.1-dev and Wan-AI/Wan2.1-T2V-1.3B-Diffusers. Tokenizers are ours: they hold no parameters.
"""

import json
from pathlib import Path
from typing import Any

from mmrl.pipelines.bases.tokenizers import clip_tokenizer, t5_tokenizer

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
KL_16 = {
    "_class_name": "AutoencoderKL", "latent_channels": 16, "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    "sample_size": 1024,
}  # fmt: skip
SD3_5_MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": [*range(13)],
    "qk_norm": "rms_norm",
}  # fmt: skip
FLUX_1_DEV = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
WAN_2_1 = {
    "patch_size": [1, 2, 2], "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
}  # fmt: skip
WAN_VAE = {"_class_name": "AutoencoderKLWan", "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4]}


def sd3_5_medium(folder: Path) -> Path:
    parts = {
        "text_encoder": clip("CLIPTextModelWithProjection", CLIP_L, 768),
        "text_encoder_2": clip("CLIPTextModelWithProjection", CLIP_G, 1280),
        "text_encoder_3": t5("T5EncoderModel", 32128),
        "transformer": {"_class_name": "SD3Transformer2DModel", **SD3_5_MEDIUM}, "vae": KL_16, "scheduler": flow(3.0),
    }  # fmt: skip
    words = {"tokenizer": clip_tokenizer(77), "tokenizer_2": clip_tokenizer(77), "tokenizer_3": t5_tokenizer(256)}
    absent = ("image_encoder", "feature_extractor")
    return written(folder, "StableDiffusion3Pipeline", parts, words, absent)


def flux_1_dev(folder: Path) -> Path:
    parts = {
        "text_encoder": clip("CLIPTextModel", CLIP_L, 768), "text_encoder_2": t5("T5EncoderModel", 32128),
        "transformer": {"_class_name": "FluxTransformer2DModel", **FLUX_1_DEV},
        "vae": KL_16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "scheduler": flow(3.0) | {"use_dynamic_shifting": True},
    }  # fmt: skip
    words = {"tokenizer": clip_tokenizer(77), "tokenizer_2": t5_tokenizer(512)}
    return written(folder, "FluxPipeline", parts, words, ("image_encoder", "feature_extractor"))


def wan_2_1_1_3b(folder: Path) -> Path:
    parts = {
        "text_encoder": t5("UMT5EncoderModel", 256384), "vae": WAN_VAE, "scheduler": flow(3.0),
        "transformer": {"_class_name": "WanTransformer3DModel", **WAN_2_1},
    }  # fmt: skip
    return written(folder, "WanPipeline", parts, {"tokenizer": t5_tokenizer(512)}, ("transformer_2",))


def clip(kind: str, size: dict[str, int], projection: int) -> dict[str, Any]:
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "projection_dim": projection,
    } | size


def t5(kind: str, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": [kind],
        "model_type": "umt5" if "UMT5" in kind else "t5",
        "vocab_size": vocabulary,
    } | T5_XXL


def flow(shift: float) -> dict[str, Any]:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift}


def written(
    folder: Path, kind: str, parts: dict[str, dict[str, Any]], words: dict[str, Any], absent: tuple[str, ...]
) -> Path:  # fmt: skip
    """`folder` as diffusers saves a pipeline, without weights."""
    index: dict[str, Any] = {"_class_name": kind} | {key: [None, None] for key in absent}
    for name, config in parts.items():
        file = {"scheduler": "scheduler_config.json"}.get(name, "config.json")
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(json.dumps(config))
        own = config.get("architectures")
        index[name] = ["transformers", own[0]] if own else ["diffusers", config["_class_name"]]
    for name, tokenizer in words.items():
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
