"""Tiny families whose decoders mix kinds of layers: linear, convolving, choosing keys, or experts beside them."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.policies.language.families.tiny.grids import DEEPSTACK, EXPERTS, SIDES, TOWER, glm, qwen
from tests.policies.language.families.tiny.parts import (  # fmt: skip
    HYBRID,
    PIXELS,
    SIGLIP,
    SLIDING,
    TEXT,
    chat,
    finished,
    of,
    recipe,
    rope,
    sliced,
    tokenizer,
)
from tests.policies.language.families.tiny.tiles import SQUARE


@recipe
def cosmos3_omni():
    text = rope(2, 3, 3, mrope_interleaved=True) | {"head_dim": 16, "model_type": "qwen3_vl_text"}
    classes = tf.Cosmos3OmniConfig, tf.Cosmos3OmniForConditionalGeneration, tf.Qwen3VLProcessor
    return qwen(*classes, tf.Qwen3VLVideoProcessor, text, DEEPSTACK | {"model_type": "qwen3_vl_vision"})


@recipe
def qwen4_exp():
    text = HYBRID | EXPERTS | rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    text |= {"shared_expert_intermediate_size": 32, "hc_count": 2, "hc_lowrank": 8}
    text |= {"ple_layer_ids": [1], "ple_embed_dim": 32, "heads_per_ngram": 2, "ngram_vocab_size_base": 64}
    text |= {"split_ngram_parts": 1, "make_ngram_vocab_size_divisible_by": 8}
    text |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64}
    text |= {"indexer_compress_ratio": 4}
    classes = tf.Qwen4ExpConfig, tf.Qwen4ExpForConditionalGeneration, tf.Qwen3VLProcessor, tf.Qwen3VLVideoProcessor
    return qwen(*classes, text, {"num_position_embeddings": 64})


LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "index_head_dim": 16, "index_n_heads": 16, "index_topk": 64,
}  # fmt: skip


@recipe
def glm5_next():
    names = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    tokens = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    tokens += ["<|begin_of_video|>", "<|end_of_video|>"]
    image, video, *around = tokens
    template = chat(around[0] + image + around[1], around[2] + video + around[3])
    tok = tokenizer(tokens, template)
    sizes = SIDES | {"size": PIXELS}
    readers = tf.Glm5NextImageProcessor(**sizes), tok, tf.Glm5NextVideoProcessor(**sizes)
    processor = tf.Glm5NextProcessor(*readers, chat_template=template)
    text = TEXT | of(tok) | LATENT | {
        "qk_rope_head_dim": 0, "v_head_dim": 8, "linear_head_dim": 16, "linear_num_heads": 2, "hc_mult": 2,
        "index_kpool": 4, "layer_types": ["linear_attention", "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    }  # fmt: skip
    ids = {f"{n}_token_id": tok.convert_tokens_to_ids(t) for n, t in zip(names, tokens, strict=True)}
    vision = TOWER | {"image_size": 64, "projection_intermediate_size": 48}
    config = tf.Glm5NextConfig(text_config=text, vision_config=vision, **ids)
    return finished(tf.Glm5NextForConditionalGeneration(config), tok, seed=2), processor


@recipe
def glmga():
    classes = tf.GlmgaConfig, tf.Glm46VForConditionalGeneration, tf.Glm46VProcessor
    return glm(*classes, tf.GlmgaImageProcessor, tf.GlmgaVideoProcessor, {"model_type": "glm4v_text"})


CONVOLVED = {
    "head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16,
    "sliding_window_size": 12, "d_rel": 8, "rel_extent": 16, "layer_types": ["hybrid_sliding", "hybrid"],
    "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


@recipe
def inkling():
    named = {"image_token": "<image>", "audio_token": "<audio>"}
    marks = ["<|content_image|>", "<|content_audio_input|>"]
    tok = tokenizer(marks, template := chat("<|content_image|><image>"), named=named)
    images = tf.InklingImageProcessor(size={"height": 8, "width": 8})
    hearing = tf.InklingFeatureExtractor()
    processor = tf.InklingProcessor(hearing, images, tok, chat_template=template)
    text = TEXT | of(tok) | CONVOLVED | {
        "mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 1, "logits_mup_width_multiplier": 2.0,
    }  # fmt: skip
    vision = {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    start, heard = tok.convert_tokens_to_ids(marks)
    config = tf.InklingConfig(
        text_config=text, vision_config=vision, audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        image_token_id=tok.image_token_id, audio_token_id=tok.audio_token_id, image_bos_token_id=start,
        audio_bos_token_id=heard,
    )  # fmt: skip
    return finished(tf.InklingForConditionalGeneration(config), tok), processor


@recipe
def inkling2():
    tok = tokenizer([], template := chat("<image>"), named={"image_token": "<image>"})
    processor = tf.Inkling2Processor(
        tf.Inkling2ImageProcessor(size={"height": 16, "width": 16}), tok, chat_template=template
    )
    text = TEXT | of(tok) | CONVOLVED | {"unpadded_vocab_size": len(tok), "log_scaling_n_floor": 16}
    text |= {"n_layers_per_attn_res_block": 1}
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "mlp_ratio": 2.0,
        "posemb_grid_size": 8, "projection_hidden_dim": 48, "text_hidden_size": 64,
    }  # fmt: skip
    config = tf.Inkling2Config(text_config=text, vision_config=vision, image_token_id=tok.image_token_id)
    return finished(tf.Inkling2ForConditionalGeneration(config), tok), processor


@recipe
def muse_spark():
    marks = ["<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_frame_separator|>", "<|vid_start|>"]
    marks += ["<|vid_end|>", "<|image|>", "<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>"]
    tok = tokenizer(marks, template := chat("<|patch|>", "<|video|>"))
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    readers = tf.MuseGlimmerImageProcessor(**sizes, max_image_tokens=64), tf.MuseGlimmerVideoProcessor(**sizes), tok
    processor = tf.MuseSparkProcessor(*readers, tf.MuseSparkFeatureExtractor(), chat_template=template)
    tower = {
        "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
        "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64,
        "layer_types": ["full_attention", "full_attention"],
    }  # fmt: skip
    text = TEXT | of(tok) | SLIDING | {
        "head_dim": 16, "moe_intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
        "moe_hidden_size": 32, "mlp_layer_types": ["dense", "sparse"],
    }  # fmt: skip
    audio = {
        "patch_sizes": [4, 2], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2,
        "out_hidden_size": 64,
    }  # fmt: skip
    image, video, heard = tok.convert_tokens_to_ids(["<|patch|>", "<|video|>", "<|audio|>"])
    config = tf.MuseSparkConfig(
        text_config=text, vision_config=tower, audio_config=audio, image_token_id=image, video_token_id=video,
        audio_token_id=heard, out_hidden_size=128, projector_hidden_size=48,
    )  # fmt: skip
    return finished(tf.MuseSparkForConditionalGeneration(config), tok), processor


@recipe
def minicpm_ocr():
    tok, template, sizes = sliced()
    readers = tf.MiniCPMOcrImageProcessor(**sizes), tf.MiniCPMOcrVideoProcessor(**sizes)
    processor = tf.MiniCPMOcrProcessor(*readers, tok, chat_template=template)
    text = HYBRID | rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    config = tf.MiniCPMOcrConfig(
        text_config=TEXT | of(tok) | text | {"model_type": "qwen3_5_text"},
        vision_config=SIGLIP | {"num_hidden_layers": 3, "image_size": 64, "insert_layer_id": 1}, insert_layer_id=1,
        image_token_id=tok.image_token_id, video_token_id=tok.video_token_id,
    )  # fmt: skip
    # Linear layers round otherwise at every width of a row: up to 3e-5 with other weights.
    return finished(tf.MiniCPMOcrForConditionalGeneration(config), tok, seed=3), processor


@recipe
def dots3_note(heads: int = 16, chosen: int = 64):
    marks = ["<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>"]
    tok = tokenizer(["<|img|>", "<|endofimg|>", *marks], template := chat("<|img|><|imgpad|><|endofimg|>", marks[1]))
    sizes = SIDES | {"size": PIXELS}
    processor = tf.Dots3NoteProcessor(
        tf.Qwen2VLImageProcessor(**sizes | {"temporal_patch_size": 1}), tok,
        tf.Qwen2VLVideoProcessor(**sizes | {"temporal_patch_size": 1}), tf.Dots3NoteFeatureExtractor(),
        chat_template=template,
    )  # fmt: skip
    narrow = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
    narrow |= {"head_dim": 16, "qk_nope_head_dim": 8, "v_head_dim": 16, "qk_rope_head_dim": 8}
    text = TEXT | of(tok) | LATENT | {
        "head_dim": 16, "n_shared_experts": 1, "shared_experts_intermediate_size": 32, "sliding_window": 12,
        "index_n_heads": heads, "index_topk": chosen, "layer_types": ["indexed_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        **{f"swa_{name}": value for name, value in narrow.items()},
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
        "moe_intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "adapter_in_dim": 32,
        "adapter_out_dim": 64, "mlp_layer_types": ["dense", "sparse"],
    }  # fmt: skip
    audio = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "downsample_hidden_size": 16, "adapter_input_size": 32, "adapter_out_dim": 64,
    }  # fmt: skip
    kinds = dict(zip(("image", "video", "audio"), tok.convert_tokens_to_ids(marks), strict=True))
    ids = {f"{kind}_token_id": i for kind, i in kinds.items()}
    config = tf.Dots3NoteConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)
    return finished(tf.Dots3NoteForConditionalGeneration(config), tok), processor


SAM = {
    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
    "patch_size": 4, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48, "initializer_range": 0.02,
}  # fmt: skip
MIXED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32,
    "mlp_layer_types": ["dense", "sparse"],
}  # fmt: skip


def document(
    images: Any, processor: Any, config: Any, model: Any, vision: dict, text: dict, side: int, tile: int
) -> Any:
    tok = tokenizer(["<image>"], template := chat("<image>\n"))
    reader = images(size={"height": side, "width": side}, tile_size=tile, min_patches=2, max_patches=4)
    made = processor(reader, tok, chat_template=template, patch_size=4, downsample_ratio=4)
    text = TEXT | of(tok) | MIXED | text
    cfg = config(text_config=text, vision_config=vision, image_token_id=tok.convert_tokens_to_ids("<image>"))
    return finished(model(cfg), tok), made


@recipe
def deepseek_ocr2():
    encoder = TEXT | {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    sam = SAM | {"downsample_channels": [24, 32], "image_size": 256, "global_attn_indexes": []}
    vision = {"sam_config": sam, "encoder_config": encoder | {"vocab_size": 8}}
    classes = tf.DeepseekOcr2ImageProcessor, tf.DeepseekOcr2Processor, tf.DeepseekOcr2Config
    return document(*classes, tf.DeepseekOcr2ForConditionalGeneration, vision, {}, 256, 192)


@recipe
def unlimited_ocr():
    encoder = SIGLIP | {"image_size": 64, "patch_size": 16}
    vision = {"sam_config": SAM | {"downsample_channels": [24, 32]}, "encoder_config": encoder}
    classes = tf.UnlimitedOcrImageProcessor, tf.UnlimitedOcrProcessor, tf.UnlimitedOcrConfig
    return document(*classes, tf.UnlimitedOcrForConditionalGeneration, vision, {"sliding_window": 12}, 64, 64)


@recipe
def emu3():
    named = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>"}
    named |= {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}
    codes = [f"<|visual token {i:06d}|>" for i in range(32)]
    tok = tokenizer([*codes, "<|extra_200|>"], template := chat(), bos="<bos>", named=named)
    images = tf.Emu3ImageProcessor(spatial_factor=8, min_pixels=32 * 32, max_pixels=64 * 64)
    processor = tf.Emu3Processor(images, tok, chat_template=template)
    vq = {
        "codebook_size": 32, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "temporal_downsample_factor": 1,
        "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "hidden_size": 32, "attn_resolutions": [],
    }  # fmt: skip
    config = tf.Emu3Config(text_config=TEXT | of(tok), vq_config=vq, vocabulary_map=tok.get_vocab())
    return finished(tf.Emu3ForConditionalGeneration(config), tok), processor


@recipe
def nemotron_h_omni():
    named = {"image_token": "<image>", "video_token": "<video>", "image_start_token": "<img>"}
    tok = tokenizer(["<so_start>", "<so_end>"], template := chat("<image>", "<video>"),
                    named=named | {"image_end_token": "</img>", "audio_token": "<so_embedding>"})  # fmt: skip
    means = {"norm_mean": [0.5] * 3, "norm_std": [0.5] * 3}
    images = tf.NemotronH_Omni_Reasoning_V3ImageProcessor(
        patch_size=8, min_num_patches=4, max_num_patches=64, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    videos = tf.NemotronH_Omni_Reasoning_V3VideoProcessor(patch_size=8, video_target_num_patches=16, **means)
    hearing = tf.ParakeetFeatureExtractor()
    processor = tf.NemotronH_Omni_Reasoning_V3Processor(images, videos, tok, hearing, chat_template=template)
    text = TEXT | of(tok) | MIXED | {
        "model_type": "nemotron_h", "head_dim": 16, "layers_block_type": ["mamba", "attention", "moe", "mamba"],
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 32, "expand": 1,
    }  # fmt: skip
    text.pop("mlp_layer_types")
    vision = {
        "model_type": "radio", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
        "intermediate_size": 48, "video_temporal_patch_size": 2, "max_img_size": 64,
    }  # fmt: skip
    config = tf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text, vision_config=vision, audio_config=None, projector_hidden_size=48, vision_hidden_size=32,
        image_token_id=tok.image_token_id, video_token_id=tok.video_token_id, audio_token_id=tok.audio_token_id,
    )  # fmt: skip
    return finished(tf.NemotronH_Omni_Reasoning_V3(config), tok), processor


@recipe
def shieldgemma2():
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tok = tokenizer([], template := chat("<start_of_image>"), bos="<bos>", named=named)
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessor(size=SQUARE), tok, chat_template=template, image_seq_length=4
    )
    text = TEXT | of(tok) | SLIDING | {"head_dim": 16, "query_pre_attn_scalar": 16, "model_type": "gemma3_text"}
    ids = {"boi_token_index": tok.boi_token_id, "eoi_token_index": tok.eoi_token_id}
    ids |= {"image_token_index": tok.image_token_id}
    config = tf.ShieldGemma2Config(
        text_config=text, vision_config=SIGLIP | {"model_type": "siglip_vision_model"}, mm_tokens_per_image=4, **ids
    )
    return finished(tf.Gemma3ForConditionalGeneration(config), tok), processor
