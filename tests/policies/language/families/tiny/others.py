"""More tiny families: older LLaVAs, Aya, LFM2, Molmo2, readers of documents, and others."""

from __future__ import annotations

import transformers as tf

from tests.policies.language.families.tiny.grids import SIDES, TOWER
from tests.policies.language.families.tiny.parts import (  # fmt: skip
    CLIP_TOWER,
    PIXELS,
    SIGLIP,
    SIGLIP_TOWER,
    SLIDING,
    TEXT,
    chat,
    finished,
    of,
    recipe,
    rope,
    tokenizer,
)
from tests.policies.language.families.tiny.tiles import PINPOINTS, SQUARE


@recipe
def aya_vision():
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    tok = tokenizer(["<image>", *marks], template := chat())
    images = tf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    sizes = {"patch_size": 8, "img_size": 32, "downsample_factor": 2}
    processor = tf.AyaVisionProcessor(images, tok, **sizes, chat_template=template)
    config = tf.AyaVisionConfig(
        text_config=TEXT | of(tok) | SLIDING | {"model_type": "cohere2", "logit_scale": 0.25},
        vision_config=SIGLIP_TOWER, downsample_factor=2, image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )  # fmt: skip
    return finished(tf.AyaVisionForConditionalGeneration(config), tok), processor


@recipe
def lfm2_vl():
    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    tiles = [f"<|img_row_{i + 1}_col_{j + 1}|>" for i in range(4) for j in range(4)]
    tok = tokenizer(tiles, template := chat(), named=named)
    sizes = {"encoder_patch_size": 8, "tile_size": 32, "min_image_tokens": 2, "max_image_tokens": 4}
    images = tf.Lfm2VlImageProcessor(**sizes, downsample_factor=2, min_tiles=2, max_tiles=4, max_num_patches=16)
    processor = tf.Lfm2VlProcessor(images, tok, chat_template=template)
    text = TEXT | of(tok) | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
    tower = {k: v for k, v in SIGLIP.items() if k != "image_size"} | {
        "model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False,
    }  # fmt: skip
    config = tf.Lfm2VlConfig(
        text_config=text, vision_config=tower, image_token_id=tok.image_token_id, projector_hidden_size=48
    )
    return finished(tf.Lfm2VlForConditionalGeneration(config), tok), processor


@recipe
def molmo2():
    marks = ["<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>"]
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tok = tokenizer([*marks, "<im_low>"], template := chat("<|image|>", "<|video|>"), named=named)
    sizes = {"patch_size": 8, "pooling_size": [2, 2], "size": SQUARE}
    images = tf.Molmo2ImageProcessor(**sizes, max_crops=4, overlap_margins=[1, 1])
    readers = images, tf.Molmo2VideoProcessor(**sizes), tok
    processor = tf.Molmo2Processor(*readers, chat_template=template)
    patch, _, start, low, frame, end, frame_end = tok.convert_tokens_to_ids(marks)
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "image_size": [32, 32],
        "num_position_embeddings": 16,
    }  # fmt: skip
    adapter = {
        "vision_feature_layer": [-1, -2], "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 48, "text_hidden_size": 64,
    }  # fmt: skip
    config = tf.Molmo2Config(
        text_config=TEXT | of(tok) | {"head_dim": 16, "additional_vocab_size": 8}, vision_config=tower,
        adapter_config=adapter, image_start_token_id=start, low_res_image_start_token_id=low, image_end_token_id=end,
        image_patch_id=patch, frame_start_token_id=frame, frame_end_token_id=frame_end,
    )  # fmt: skip
    return finished(tf.Molmo2ForConditionalGeneration(config), tok), processor


@recipe
def gemma3n():
    named = {f"{kind}_token": f"<{kind}_soft_token>" for kind in ("image", "audio")}
    named |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    named |= {"boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"}
    tok = tokenizer([], template := chat("<image_soft_token>"), bos="<bos>", named=named)
    images = tf.SiglipImageProcessor(size={"height": 64, "width": 64})
    readers = tf.Gemma3nAudioFeatureExtractor(), images, tok
    processor = tf.Gemma3nProcessor(*readers, chat_template=template, image_seq_length=256)
    text = TEXT | of(tok) | SLIDING | {
        "head_dim": 16, "num_hidden_layers": 4, "layer_types": SLIDING["layer_types"] * 2, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": len(tok), "hidden_size_per_layer_input": 8, "laurel_rank": 8,
        "intermediate_size": [96] * 4, "activation_sparsity_pattern": [0.0] * 4,
    }  # fmt: skip
    ids = {f"{k}_token_id": getattr(tok, f"{k}_token_id") for k in ("image", "audio", "boi", "eoi", "boa", "eoa")}
    audio = {
        "hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "vocab_size": 8,
        "vocab_offset": len(tok) + 8, "sscp_conv_channel_size": [8, 4],
    }  # fmt: skip
    vision = {"vocab_size": 8, "vocab_offset": len(tok), "model_args": {"channel_multiplier": 0.1}}
    config = tf.Gemma3nConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)
    return finished(tf.Gemma3nForConditionalGeneration(config), tok), processor


@recipe
def vipllava():
    tok = tokenizer(["<image>"], template := chat("<image>\n"))
    images = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    sizes = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = tf.LlavaProcessor(images, tok, **sizes, chat_template=template)
    config = tf.VipLlavaConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=CLIP_TOWER, vision_feature_layer=[-2, 1],
        image_token_index=tok.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    return finished(tf.VipLlavaForConditionalGeneration(config), tok), processor


@recipe
def llava_next_video():
    tok = tokenizer(["<image>", "<video>"], template := chat("<image>\n", "<video>\n"))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
    images = tf.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=PINPOINTS)
    videos = tf.LlavaNextVideoVideoProcessor(**sizes)
    sizes = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = tf.LlavaNextVideoProcessor(videos, images, tok, **sizes, chat_template=template)
    image, video = tok.convert_tokens_to_ids(["<image>", "<video>"])
    config = tf.LlavaNextVideoConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=CLIP_TOWER, image_grid_pinpoints=PINPOINTS,
        image_token_index=image, video_token_index=video, image_seq_length=16, video_seq_length=4,
    )  # fmt: skip
    return finished(tf.LlavaNextVideoForConditionalGeneration(config), tok), processor


@recipe
def video_llava():
    tok = tokenizer(["<image>", "<video>"], template := chat("<image>\n", "<video>\n"))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
    readers = tf.VideoLlavaImageProcessor(**sizes), tf.VideoLlavaVideoProcessor(**sizes), tok
    processor = tf.VideoLlavaProcessor(*readers, patch_size=8, chat_template=template)
    image, video = tok.convert_tokens_to_ids(["<image>", "<video>"])
    config = tf.VideoLlavaConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=CLIP_TOWER, image_token_index=image,
        video_token_index=video, image_seq_length=16, video_seq_length=136,
    )  # fmt: skip
    return finished(tf.VideoLlavaForConditionalGeneration(config), tok), processor


@recipe
def got_ocr2():
    tok = tokenizer(["<imgpad>", "<img>", "</img>"], template := chat("<img><imgpad></img>"))
    images = tf.GotOcr2ImageProcessor(size={"height": 256, "width": 256})
    processor = tf.GotOcr2Processor(images, tok, chat_template=template)
    tower = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 256,
        "patch_size": 4, "window_size": 4, "global_attn_indexes": [], "mlp_dim": 48,
    }  # fmt: skip
    config = tf.GotOcr2Config(
        text_config=TEXT | of(tok) | {"model_type": "qwen2"}, vision_config=tower, image_seq_length=256,
        image_token_index=tok.convert_tokens_to_ids("<imgpad>"),
    )  # fmt: skip
    return finished(tf.GotOcr2ForConditionalGeneration(config), tok), processor


@recipe
def glm_ocr():
    names = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    tokens = [f"<|{name}|>" for name in names]
    image, video, first, last, start, end = tokens
    tok = tokenizer(tokens, template := chat(first + image + last, start + video + end))
    sizes = SIDES | {"size": PIXELS}
    readers = tf.Glm46VImageProcessor(**sizes), tok, tf.Glm46VVideoProcessor(**sizes)
    processor = tf.Glm46VProcessor(*readers, chat_template=template)
    ids = {f"{n}_token_id": tok.convert_tokens_to_ids(t) for n, t in zip(names, tokens, strict=True)}
    config = tf.GlmOcrConfig(
        text_config=TEXT | of(tok) | rope(2, 3, 3), vision_config=TOWER | {"image_size": 256}, **ids
    )
    return finished(tf.GlmOcrForConditionalGeneration(config), tok), processor


@recipe
def paddleocr_vl():
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    template = chat("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    tok = tokenizer(around := ["<|IMAGE_START|>", "<|IMAGE_END|>"], template, named=named)
    images = tf.PaddleOCRVLImageProcessor(patch_size=8, merge_size=2, size=PIXELS)
    processor = tf.PaddleOCRVLProcessor(images, tok, chat_template=template)
    tower = SIGLIP | {"spatial_merge_size": 2, "image_size": 64}
    start, end = tok.convert_tokens_to_ids(around)
    config = tf.PaddleOCRVLConfig(
        text_config=TEXT | of(tok) | rope(2, 3, 3) | {"head_dim": 16}, vision_config=tower,
        image_token_id=tok.image_token_id, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return finished(tf.PaddleOCRVLForConditionalGeneration(config), tok), processor


@recipe
def lighton_ocr():
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>"}
    tok = tokenizer([], template := chat("<|image_pad|>"), named=named | {"image_end_token": "<|vision_end|>"})
    images = tf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16})
    processor = tf.LightOnOcrProcessor(images, tok, patch_size=8, spatial_merge_size=2, chat_template=template)
    config = tf.LightOnOcrConfig(
        text_config=TEXT | of(tok) | {"head_dim": 16, "model_type": "qwen3"}, image_token_id=tok.image_token_id,
        vision_config=SIGLIP | {"model_type": "pixtral", "head_dim": 16, "image_size": 64}, spatial_merge_size=2,
    )  # fmt: skip
    return finished(tf.LightOnOcrForConditionalGeneration(config), tok), processor


@recipe
def aria():
    tok = tokenizer([], template := chat("<fim_prefix><|img|><fim_suffix>"), named={"image_token": "<|img|>"})
    images = tf.AriaImageProcessor(max_image_size=490, min_image_size=336)
    processor = tf.AriaProcessor(images, tok, chat_template=template, size_conversion={490: 4, 980: 8})
    tower = SIGLIP | {"model_type": "idefics3_vision", "image_size": 980, "patch_size": 70}
    text = TEXT | of(tok) | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = tf.AriaConfig(
        text_config=text,
        vision_config=tower,
        projector_patch_to_query_dict={49: 4, 196: 8},
        image_token_index=tok.image_token_id,
    )
    return finished(tf.AriaForConditionalGeneration(config), tok), processor


@recipe
def deepseek_vl_hybrid():
    tok = tokenizer([], template := chat("<image_placeholder>"), named={"image_token": "<image_placeholder>"})
    images = tf.DeepseekVLHybridImageProcessor(size=SQUARE, high_res_size={"height": 64, "width": 64})
    processor = tf.DeepseekVLHybridProcessor(images, tok, chat_template=template, num_image_tokens=16)
    sam = {
        "model_type": "sam_vision_model", "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 64, "patch_size": 4, "window_size": 4, "global_attn_indexes": [1],
        "mlp_dim": 48,
    }  # fmt: skip
    config = tf.DeepseekVLHybridConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"}, vision_config=SIGLIP_TOWER, high_res_vision_config=sam,
        image_token_id=tok.image_token_id,
    )  # fmt: skip
    return finished(tf.DeepseekVLHybridForConditionalGeneration(config), tok), processor
