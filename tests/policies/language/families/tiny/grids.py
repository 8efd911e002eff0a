"""Tiny families whose picture is a grid of patch rows: Qwen, GLM, Ernie, Exaone, LFM3, VideoLlama3, Kimi."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.policies.language.families.tiny.parts import (  # fmt: skip
    HYBRID,
    PIXELS,
    SLIDING,
    TEXT,
    chat,
    finished,
    of,
    recipe,
    rope,
    tokenizer,
)

SIDES = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
TOWER = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 64,
}  # fmt: skip


def qwen(config: Any, model: Any, processor: Any, videos: Any, text: dict, vision: dict, around: str = "") -> Any:
    start, end, image, video = tokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(tokens, template := chat(start + image + end, around.replace("VIDEO", video) or video))
    clips = videos(size=PIXELS | {"longest_edge": 262144}, **SIDES)
    made = processor(tf.Qwen2VLImageProcessor(size=PIXELS, **SIDES), tok, clips, chat_template=template)
    names = ("vision_start", "vision_end", "image", "video")
    ids = {f"{n}_token_id": tok.convert_tokens_to_ids(t) for n, t in zip(names, tokens, strict=True)}
    cfg = config(text_config=TEXT | of(tok) | text, vision_config=TOWER | vision, **ids)
    return finished(model(cfg), tok), made


AROUND = "<|vision_start|>VIDEO<|vision_end|>"


@recipe
def qwen2_vl():
    vision = {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
    classes = tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration, tf.Qwen2VLProcessor, tf.Qwen2VLVideoProcessor
    return qwen(*classes, rope(2, 3, 3), vision, AROUND)


@recipe
def qwen2_5_vl():
    vision = {"fullatt_block_indexes": [1], "window_size": 32, "tokens_per_second": 4}
    classes = tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, tf.Qwen2_5_VLProcessor
    return qwen(*classes, tf.Qwen2VLVideoProcessor, rope(2, 3, 3), vision, AROUND)


DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}


@recipe
def qwen3_vl():
    text = rope(2, 3, 3, mrope_interleaved=True) | {"head_dim": 16}
    classes = tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration, tf.Qwen3VLProcessor, tf.Qwen3VLVideoProcessor
    return qwen(*classes, text, DEEPSTACK)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@recipe
def qwen3_vl_moe():
    text = rope(2, 3, 3, mrope_interleaved=True) | EXPERTS | {"head_dim": 16, "decoder_sparse_step": 1}
    classes = tf.Qwen3VLMoeConfig, tf.Qwen3VLMoeForConditionalGeneration, tf.Qwen3VLProcessor
    return qwen(*classes, tf.Qwen3VLVideoProcessor, text, DEEPSTACK)


@recipe
def qwen3_5():
    text = HYBRID | rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    classes = tf.Qwen3_5Config, tf.Qwen3_5ForConditionalGeneration, tf.Qwen3VLProcessor, tf.Qwen3VLVideoProcessor
    return qwen(*classes, text, {"num_position_embeddings": 64})


@recipe
def qwen3_5_moe():
    text = HYBRID | rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5) | EXPERTS
    text |= {"shared_expert_intermediate_size": 32}
    classes = tf.Qwen3_5MoeConfig, tf.Qwen3_5MoeForConditionalGeneration, tf.Qwen3VLProcessor
    return qwen(*classes, tf.Qwen3VLVideoProcessor, text, {"num_position_embeddings": 64})


def glm(config: Any, model: Any, processor: Any, images: Any, videos: Any, text: dict) -> Any:
    names = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    tokens = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    tokens += ["<|begin_of_video|>", "<|end_of_video|>"]
    image, video, *around = tokens
    template = chat(around[0] + image + around[1], around[2] + video + around[3])
    tok = tokenizer(tokens, template)
    sizes = SIDES | {"size": PIXELS}
    made = processor(images(**sizes), tok, videos(**sizes), chat_template=template)
    ids = {f"{n}_token_id": tok.convert_tokens_to_ids(t) for n, t in zip(names, tokens, strict=True)}
    text = TEXT | of(tok) | rope(2, 1, 1, partial_rotary_factor=0.5) | text
    return finished(model(config(text_config=text, vision_config=TOWER | {"image_size": 64}, **ids)), tok), made


@recipe
def glm4v():
    classes = tf.Glm4vConfig, tf.Glm4vForConditionalGeneration, tf.Glm4vProcessor
    return glm(*classes, tf.Glm4vImageProcessor, tf.Glm4vVideoProcessor, {})


@recipe
def glm46v():
    classes = tf.Glm46VConfig, tf.Glm46VForConditionalGeneration, tf.Glm46VProcessor
    return glm(*classes, tf.Glm46VImageProcessor, tf.Glm46VVideoProcessor, {"model_type": "glm4v_text"})


@recipe
def glm4v_moe():
    text = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    classes = tf.Glm4vMoeConfig, tf.Glm4vMoeForConditionalGeneration, tf.Glm4vProcessor
    return glm(*classes, tf.Glm4vImageProcessor, tf.Glm4vVideoProcessor, text)


@recipe
def ernie4_5_vl_moe():
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>", "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>",
    }  # fmt: skip
    image, first, last, video, start, end = named.values()
    tok = tokenizer([], template := chat(first + image + last, start + video + end), named=named)
    sizes = {"patch_size": 8, "merge_size": 2, "size": PIXELS}
    parts = (
        tf.Ernie4_5_VLMoeImageProcessor(**sizes),
        tok,
        tf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False, **sizes),
    )
    processor = tf.Ernie4_5_VLMoeProcessor(*parts, chat_template=template)
    text = TEXT | of(tok) | rope(3, 3, 2) | {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4}
    text |= {"moe_num_shared_experts": 1}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "intermediate_size": 48}
    ids = {f"{name}_id": tok.convert_tokens_to_ids(token) for name, token in named.items()}
    config = tf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, **ids)
    return finished(tf.Ernie4_5_VLMoeForConditionalGeneration(config), tok), processor


@recipe
def exaone4_5():
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    template = chat("<vision><|image_pad|></vision>", "<vision><|video_pad|></vision>")
    tok = tokenizer(["<vision>", "</vision>"], template, named=named)
    sizes = SIDES | {"size": PIXELS}
    parts = tf.Qwen2VLImageProcessor(**sizes), tok, tf.Qwen2VLVideoProcessor(**sizes)
    processor = tf.Exaone4_5_Processor(*parts, chat_template=template)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "num_key_value_heads": 1,
        "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 64,
    }  # fmt: skip
    text = TEXT | of(tok) | SLIDING | {"model_type": "exaone4"}
    ids = {"image_token_id": tok.image_token_id, "video_token_id": tok.video_token_id}
    config = tf.Exaone4_5_Config(text_config=text, vision_config=vision, **ids)
    return finished(tf.Exaone4_5_ForConditionalGeneration(config), tok), processor


@recipe
def lfm3_vl():
    start, end, image, video = tokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(tokens, template := chat(start + image + end, video))
    sizes = SIDES | {"size": PIXELS}
    parts = tf.Qwen2VLImageProcessor(**sizes), tok, tf.Qwen3VLVideoProcessor(**sizes)
    processor = tf.Lfm3VlProcessor(*parts, chat_template=template)
    layers = {"layer_types": ["conv", "full_attention"]}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "patch_size": 8,
    }  # fmt: skip
    names = ("vision_start", "vision_end", "image", "video")
    ids = {f"{n}_token_id": tok.convert_tokens_to_ids(t) for n, t in zip(names, tokens, strict=True)}
    text = TEXT | of(tok) | layers | {"model_type": "lfm3"}
    config = tf.Lfm3VlConfig(text_config=text, vision_config=vision | layers, projector_hidden_size=48, **ids)
    return finished(tf.Lfm3VlForConditionalGeneration(config), tok), processor


@recipe
def video_llama_3():
    named = {"image_token": "<image>", "video_token": "<video>"}
    tok = tokenizer([], template := chat("<image>\n", "<video>\n"), named=named)
    sizes = {"patch_size": 8, "merge_size": 2, "size": PIXELS}
    parts = tf.VideoLlama3ImageProcessor(**sizes), tok, tf.VideoLlama3VideoProcessor(**sizes)
    processor = tf.VideoLlama3Processor(*parts, chat_template=template)
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
    }  # fmt: skip
    ids = {"image_token_id": tok.image_token_id, "video_token_id": tok.video_token_id}
    config = tf.VideoLlama3Config(text_config=TEXT | of(tok) | {"model_type": "qwen2"}, vision_config=vision, **ids)
    return finished(tf.VideoLlama3ForConditionalGeneration(config), tok), processor


@recipe
def kimi_k25():
    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    template = chat("<|media_begin|><|media_pad|><|media_end|>", "<|kimi_k25_video_placeholder|>")
    tok = tokenizer(around := ["<|media_begin|>", "<|media_end|>"], template, named=named)
    sizes = {"patch_size": 8, "merge_size": 2}
    parts = tf.Kimi_K25ImageProcessor(**sizes), tok, tf.Kimi_K25VideoProcessor(**sizes)
    processor = tf.Kimi_K25Processor(*parts, chat_template=template)
    text = {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "q_lora_rank": None, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    }  # fmt: skip
    vision = {
        "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
        "hidden_size": 32, "intermediate_size": 48,
    }  # fmt: skip
    ids = {"image_token_id": tok.image_token_id, "video_token_id": tok.video_token_id}
    ids |= dict(zip(("vision_start_token_id", "vision_end_token_id"), tok.convert_tokens_to_ids(around), strict=True))
    config = tf.Kimi_K25Config(
        text_config=TEXT | of(tok) | text, vision_config=vision, projection_hidden_size=32, **ids
    )
    return finished(tf.Kimi_K25ForConditionalGeneration(config), tok), processor


def omni(config: Any, model: Any, processor: Any, text: dict, vision: dict, audio: dict) -> Any:
    kinds = ("image", "video", "audio")
    named = {f"{kind}_token": f"<|{kind.upper()}|>" for kind in kinds}
    named |= {f"{k}_{e}_token": f"<|{k}_{e}|>" for k in ("vision", "audio") for e in ("bos", "eos")}
    template = chat("<|vision_bos|><|IMAGE|><|vision_eos|>", "<|vision_bos|><|VIDEO|><|vision_eos|>")
    tok = tokenizer([], template, named=named)
    sizes = SIDES | {"size": PIXELS}
    readers = tf.Qwen2VLImageProcessor(**sizes), tf.Qwen2VLVideoProcessor(**sizes)
    made = processor(*readers, tf.WhisperFeatureExtractor(feature_size=128), tok, chat_template=template)
    hearing = {
        "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "output_dim": 64,
    }  # fmt: skip
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in named.items()}
    suffix = "index" if "2_5" in config.model_type else "id"
    cfg = config(
        text_config=TEXT | of(tok) | text, vision_config=TOWER | vision, audio_config=hearing | audio,
        audio_start_token_id=ids["audio_bos_token"], **{f"{k}_token_{suffix}": ids[f"{k}_token"] for k in kinds},
    )  # fmt: skip
    cfg.vision_start_token_id, cfg.vision_end_token_id = ids["vision_bos_token"], ids["vision_eos_token"]
    return finished(model(cfg), tok), made


@recipe
def qwen2_5_omni():
    vision = {"window_size": 32, "fullatt_block_indexes": [1]}
    classes = tf.Qwen2_5OmniThinkerConfig, tf.Qwen2_5OmniThinkerForConditionalGeneration, tf.Qwen2_5OmniProcessor
    return omni(*classes, rope(2, 3, 3), vision, {})


@recipe
def qwen3_omni_moe():
    text = rope(2, 3, 3, mrope_interleaved=True, interleaved=True) | EXPERTS | {"head_dim": 16}
    classes = tf.Qwen3OmniMoeThinkerConfig, tf.Qwen3OmniMoeThinkerForConditionalGeneration, tf.Qwen3OmniMoeProcessor
    return omni(*classes, text, DEEPSTACK, {"downsample_hidden_size": 16})
