"""Tiny families whose picture is one square or several tiles: LLaVA, InternVL, Idefics, Gemma, Llama and others."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.policies.language.families.tiny.parts import (  # fmt: skip
    CLIP_TOWER,
    HYBRID,
    SIGLIP,
    SIGLIP_TOWER,
    SLIDING,
    TEXT,
    TILES,
    chat,
    finished,
    of,
    recipe,
    rope,
    sliced,
    tokenizer,
)

SQUARE = {"height": 32, "width": 32}
PINPOINTS = [[32, 64], [64, 32], [64, 64]]


@recipe
def internvl():
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tok = tokenizer([], template := chat("<IMG_CONTEXT>\n", "<video>\n"), named=named)
    images = tf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    videos = tf.InternVLVideoProcessor(size=SQUARE)
    processor = tf.InternVLProcessor(images, tok, videos, image_seq_length=4, chat_template=template)
    vision = SIGLIP | {"image_size": [32, 32], "patch_size": [8, 8]}
    config = tf.InternVLConfig(
        text_config=TEXT | of(tok) | {"model_type": "qwen2"}, vision_config=vision,
        image_token_id=tok.context_image_token_id, image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    return finished(tf.InternVLForConditionalGeneration(config), tok), processor


def idefics(name: str, specials: list[str], template: str, *videos: Any) -> Any:
    tok = tokenizer(specials, template)
    size = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    readers = getattr(tf, f"{name}ImageProcessor")(**size), tok, *(reader(**size) for reader in videos)
    processor = getattr(tf, f"{name}Processor")(*readers, image_seq_len=4, chat_template=template)
    config = getattr(tf, f"{name}Config")(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=SIGLIP, scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"), pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return finished(getattr(tf, f"{name}ForConditionalGeneration")(config), tok), processor


MARKERS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]


@recipe
def smolvlm():
    return idefics("SmolVLM", [*MARKERS, "<global-img>", "<video>", *TILES], chat(), tf.SmolVLMVideoProcessor)


@recipe
def idefics3():
    return idefics("Idefics3", [*MARKERS, "<global-img>", *TILES], chat())


@recipe
def idefics2():
    tok = tokenizer(MARKERS, template := chat())
    images = tf.Idefics2ImageProcessor(size={"shortest_edge": 24, "longest_edge": 48}, do_image_splitting=False)
    processor = tf.Idefics2Processor(images, tok, image_seq_len=4, chat_template=template)
    perceiver = {
        "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
        "num_key_value_heads": 1, "hidden_size": 64,
    }  # fmt: skip
    config = tf.Idefics2Config(
        text_config=TEXT | of(tok) | {"model_type": "mistral", "sliding_window": None},
        vision_config=SIGLIP | {"image_size": 48}, perceiver_config=perceiver,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return finished(tf.Idefics2ForConditionalGeneration(config), tok), processor


@recipe
def gemma3():
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tok = tokenizer([], template := chat("<start_of_image>"), bos="<bos>", named=named)
    images = tf.Gemma3ImageProcessor(size=SQUARE)
    processor = tf.Gemma3Processor(images, tok, chat_template=template, image_seq_length=4)
    text = TEXT | of(tok) | SLIDING | {"head_dim": 16, "query_pre_attn_scalar": 16}
    ids = {"boi_token_index": tok.boi_token_id, "eoi_token_index": tok.eoi_token_id}
    ids |= {"image_token_index": tok.image_token_id, "image_token_id": tok.image_token_id}
    config = tf.Gemma3Config(text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4, **ids)
    return finished(tf.Gemma3ForConditionalGeneration(config), tok), processor


def gemma_4(shared: int) -> Any:
    named = {f"{kind}_token": f"<|{kind}|>" for kind in ("image", "audio", "video")}
    named |= {"boi_token": "<|image>", "eoi_token": "<image|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tok = tokenizer([], template := chat("<|image|>", "<|video|>"), bos="<bos>", named=named)
    sizes = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    readers = tf.Gemma4AudioFeatureExtractor(), tf.Gemma4ImageProcessor(**sizes), tok, tf.Gemma4VideoProcessor(**sizes)
    processor = tf.Gemma4Processor(*readers, chat_template=template, image_seq_length=70)
    text = TEXT | of(tok) | SLIDING | {
        "head_dim": 16, "global_head_dim": 16, "num_hidden_layers": 4, "layer_types": SLIDING["layer_types"] * 2,
        "vocab_size_per_layer_input": len(tok), "hidden_size_per_layer_input": 8, "num_kv_shared_layers": shared,
        "use_bidirectional_attention": "vision", "final_logit_softcapping": 30.0,
    }  # fmt: skip
    vision = SIGLIP | {
        "num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 256,
    }  # fmt: skip
    ids = {f"{k}_token_id": getattr(tok, f"{k}_token_id") for k in ("image", "video", "audio", "boi", "eoi")}
    config = tf.Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **ids)
    return finished(tf.Gemma4ForConditionalGeneration(config), tok), processor


@recipe
def gemma4():
    return gemma_4(0)


@recipe
def gemma4_shared():
    return gemma_4(2)


def paligemma_(text: dict) -> Any:
    tok = tokenizer(["<image>"], template := chat(pictures_first=True), bos="<bos>")
    images = tf.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(images, tok, chat_template=template)
    config = tf.PaliGemmaConfig(
        text_config=TEXT | of(tok) | {"head_dim": 16} | text, vision_config=SIGLIP_TOWER, projection_dim=64,
        hidden_size=64, vocab_size=len(tok), image_token_index=tok.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return finished(tf.PaliGemmaForConditionalGeneration(config), tok), processor


@recipe
def paligemma():
    return paligemma_({"model_type": "gemma"})


@recipe
def paligemma2():
    caps = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
    return paligemma_(SLIDING | caps | {"model_type": "gemma2", "query_pre_attn_scalar": 16})


@recipe
def llava():
    tok = tokenizer(["<image>"], template := chat("<image>\n"))
    images = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    sizes = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = tf.LlavaProcessor(images, tok, **sizes, chat_template=template)
    config = tf.LlavaConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=CLIP_TOWER,
        image_token_index=tok.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    return finished(tf.LlavaForConditionalGeneration(config), tok), processor


@recipe
def llava_next():
    tok = tokenizer(["<image>"], template := chat("<image>\n"))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS}
    images = tf.LlavaNextImageProcessor(**sizes)
    sizes = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = tf.LlavaNextProcessor(images, tok, **sizes, chat_template=template)
    config = tf.LlavaNextConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=CLIP_TOWER,
        image_grid_pinpoints=PINPOINTS, image_token_index=tok.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    return finished(tf.LlavaNextForConditionalGeneration(config), tok), processor


@recipe
def llava_onevision():
    tok = tokenizer(["<image>", "<video>"], template := chat("<image>\n", "<video>\n"))
    grid = [[32, 32], *PINPOINTS]
    images = tf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=grid)
    videos = tf.LlavaOnevisionVideoProcessor(size=SQUARE)
    sizes = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    processor = tf.LlavaOnevisionProcessor(images, tok, videos, **sizes, chat_template=template)
    image, video = tok.convert_tokens_to_ids(["<image>", "<video>"])
    config = tf.LlavaOnevisionConfig(
        text_config=TEXT | of(tok) | {"model_type": "qwen2"}, vision_config=SIGLIP_TOWER, image_grid_pinpoints=grid,
        image_token_index=image, video_token_index=video,
    )  # fmt: skip
    return finished(tf.LlavaOnevisionForConditionalGeneration(config), tok), processor


@recipe
def granite4_vision():
    tok = tokenizer(["<image>"], template := chat("<image>\n"))
    sizes = {"size": SQUARE, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS}
    images = tf.LlavaNextImageProcessor(**sizes)
    sizes = {"patch_size": 8, "vision_feature_select_strategy": "full", "downsample_rate": "1/2"}
    processor = tf.Granite4VisionProcessor(images, tok, **sizes, chat_template=template)
    return finished(granite_model(tok), tok), processor


def granite_model(tok: Any) -> Any:
    tower = SIGLIP_TOWER | {"hidden_size": 64}
    text = TEXT | of(tok) | {"model_type": "granite4_vision_text", "num_hidden_layers": 4, "logits_scaling": 4.0}
    config = tf.Granite4VisionConfig(
        text_config=text, vision_config=tower, image_grid_pinpoints=PINPOINTS, downsample_rate="1/2",
        image_token_index=tok.convert_tokens_to_ids("<image>"), deepstack_layer_map=[[-1, 0], [-2, 2]],
        vision_feature_select_strategy="full", use_spatial_sampling=False, projector_dropout=0.0,
    )  # fmt: skip
    return tf.Granite4VisionForConditionalGeneration(config)


@recipe
def mistral3():
    tok = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], template := chat("[IMG]"))
    images = tf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = tf.PixtralProcessor(images, tok, patch_size=8, spatial_merge_size=2, chat_template=template)
    vision = SIGLIP | {"model_type": "pixtral", "head_dim": 16, "image_size": 64}
    text = TEXT | of(tok) | {"head_dim": 16, "model_type": "mistral", "sliding_window": None}
    config = tf.Mistral3Config(
        text_config=text, vision_config=vision, spatial_merge_size=2,
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    return finished(tf.Mistral3ForConditionalGeneration(config), tok), processor


@recipe
def deepseek_vl():
    tok = tokenizer([], template := chat("<image_placeholder>"), named={"image_token": "<image_placeholder>"})
    images = tf.DeepseekVLImageProcessor(size=SQUARE)
    processor = tf.DeepseekVLProcessor(images, tok, chat_template=template, num_image_tokens=16)
    text = TEXT | of(tok) | {"model_type": "llama"}
    config = tf.DeepseekVLConfig(text_config=text, vision_config=SIGLIP_TOWER, image_token_id=tok.image_token_id)
    return finished(tf.DeepseekVLForConditionalGeneration(config), tok), processor


@recipe
def cohere2_vision():
    named = {
        "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }  # fmt: skip
    tok = tokenizer([], template := chat("<|IMG_PATCH|>"), named=named)
    images = tf.Cohere2VisionImageProcessor(size=SQUARE, patch_size=2, max_patches=4)
    processor = tf.Cohere2VisionProcessor(images, tok, chat_template=template)
    config = tf.Cohere2VisionConfig(
        text_config=TEXT | of(tok) | SLIDING | {"model_type": "cohere2", "logit_scale": 0.25},
        vision_config=SIGLIP_TOWER, downsample_factor=2, image_token_id=tok.image_token_id,
        alignment_intermediate_size=64,
    )  # fmt: skip
    return finished(tf.Cohere2VisionForConditionalGeneration(config), tok), processor


@recipe
def ovis2():
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tok = tokenizer(["<image>", "<IMG_ATOM>", *marks], template := chat())
    images = tf.Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4)
    processor = tf.Ovis2Processor(images, tok, image_seq_length=4, chat_template=template)
    config = tf.Ovis2Config(
        text_config=TEXT | of(tok) | {"model_type": "qwen2"},
        vision_config=SIGLIP | {"vocab_size": 40, "hidden_stride": 2},
        image_token_id=tok.convert_tokens_to_ids("<IMG_ATOM>"), vocab_size=len(tok), hidden_size=64,
        visual_indicator_token_ids=tok.convert_tokens_to_ids(marks),
    )  # fmt: skip
    return finished(tf.Ovis2ForConditionalGeneration(config), tok), processor


@recipe
def perception_lm():
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tok = tokenizer([], template := chat("<|image|>", "<|video|>"), named=named)
    readers = tf.PerceptionLMVideoProcessor(size=SQUARE), tf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4)
    processor = tf.PerceptionLMProcessor(*readers, tok, patch_size=8, pooling_ratio=2, chat_template=template)
    tower = {
        "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": [32, 32], "patch_size": 8,
        "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [4, 4], "global_pool": "",
    }  # fmt: skip
    vision = {
        "model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "do_pooling": True,
        "num_classes": 1, "global_pool": "map", "model_args": tower,
    }  # fmt: skip
    config = tf.PerceptionLMConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=vision, vision_use_cls_token=True,
        projector_pooling_ratio=2, image_token_id=tok.image_token_id, video_token_id=tok.video_token_id,
    )  # fmt: skip
    return finished(tf.PerceptionLMForConditionalGeneration(config), tok), processor


@recipe
def minicpmv4_6():
    tok, template, sizes = sliced()
    readers = tf.MiniCPMV4_6ImageProcessor(**sizes), tf.MiniCPMV4_6VideoProcessor(**sizes)
    processor = tf.MiniCPMV4_6Processor(*readers, tok, chat_template=template)
    text = HYBRID | rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    config = tf.MiniCPMV4_6Config(
        text_config=TEXT | of(tok) | text | {"model_type": "qwen3_5_text"},
        vision_config=SIGLIP | {"num_hidden_layers": 3, "image_size": 64}, insert_layer_id=1, image_size=64,
        image_token_id=tok.image_token_id, video_token_id=tok.video_token_id,
    )  # fmt: skip
    return finished(tf.MiniCPMV4_6ForConditionalGeneration(config), tok), processor


def llama_4(floor: int) -> Any:
    tokens = ["<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"]
    tok = tokenizer([*tokens, "<|tile_x_separator|>", "<|tile_y_separator|>"], template := chat("<|image|>"))
    images = tf.Llama4ImageProcessor(size=SQUARE, max_patches=4)
    processor = tf.Llama4Processor(images, tok, patch_size=8, pixel_shuffle_ratio=0.5, chat_template=template)
    text = TEXT | of(tok) | {
        "head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 2, "interleave_moe_layer_step": 2,
        "attention_chunk_size": 16, "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0], "floor_scale": floor, "use_qk_norm": True,
    }  # fmt: skip
    vision = SIGLIP | {
        "intermediate_size": 128, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
        "pixel_shuffle_ratio": 0.5,
    }  # fmt: skip
    _, start, end, patch = tok.convert_tokens_to_ids(tokens)
    ids = {"image_token_index": patch, "boi_token_index": start, "eoi_token_index": end}
    return finished(tf.Llama4ForConditionalGeneration(tf.Llama4Config(text_config=text, vision_config=vision, **ids)),
                    tok), processor  # fmt: skip


@recipe
def llama4():
    return llama_4(8192)


@recipe
def mllama():
    tok = tokenizer(["<|image|>", "<|python_tag|>"], template := chat("<|image|>"), bos="<bos>")
    images = tf.MllamaImageProcessor(size=SQUARE, max_image_tiles=4)
    processor = tf.MllamaProcessor(images, tok, chat_template=template)
    text = TEXT | of(tok) | rope() | {"num_hidden_layers": 3, "cross_attention_layers": [1]}
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2,
        "intermediate_size": 48, "vision_output_dim": 64, "image_size": 32, "patch_size": 8,
        "intermediate_layers_indices": [1],
    }  # fmt: skip
    image = tok.convert_tokens_to_ids("<|image|>")
    config = tf.MllamaConfig(text_config=text, vision_config=vision, image_token_index=image)
    return finished(tf.MllamaForConditionalGeneration(config), tok), processor
