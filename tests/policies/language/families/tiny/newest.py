"""Tiny families of the newest types: other readers of pictures before, and other layers in, a text decoder."""

from __future__ import annotations

import transformers as tf

from tests.policies.language.families.tiny.grids import DEEPSTACK, SIDES, TOWER
from tests.policies.language.families.tiny.parts import (  # fmt: skip
    HYBRID,
    PIXELS,
    SIGLIP,
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
from tests.policies.language.families.tiny.tiles import SQUARE


@recipe
def janus():
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tok = tokenizer([], template := chat("<image_placeholder>"), named=named)
    images = tf.JanusImageProcessor(size=SQUARE)
    processor = tf.JanusProcessor(images, tok, chat_template=template, num_image_tokens=16)
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "mlp_ratio": 2,
        "projection_dim": 64,
        "depth": 2,
        "num_image_tokens": 16,
    }
    vq = {
        "embed_dim": 8,
        "num_embeddings": 16,
        "latent_channels": 8,
        "num_patches": 4,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
    }
    config = tf.JanusConfig(
        text_config=TEXT | of(tok) | {"model_type": "llama"},
        vision_config=tower,
        vq_config=vq,
        image_token_id=tok.image_token_id,
    )
    return finished(tf.JanusForConditionalGeneration(config), tok), processor


@recipe
def hunyuan_vl():
    named = {"image_token": "<image>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"}
    tok = tokenizer(["<im_newline>"], template := chat("<im_start><image><im_end>"), named=named)
    images = tf.HunYuanVLImageProcessor(patch_size=8, merge_size=2, size=PIXELS)
    processor = tf.HunYuanVLProcessor(images, tok, chat_template=template)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
        "out_hidden_size": 64,
        "text_hidden_size": 64,
        "max_image_size": 64,
        "min_image_size": 16,
        "img_max_token_num": 64,
    }
    text = (
        TEXT
        | of(tok)
        | {"head_dim": 16}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}}
    )
    config = tf.HunYuanVLConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=tok.image_token_id,
        im_start_id=tok.image_start_token_id,
        im_end_id=tok.image_end_token_id,
        im_newline_id=tok.convert_tokens_to_ids("<im_newline>"),
    )
    return finished(tf.HunYuanVLForConditionalGeneration(config), tok), processor


@recipe
def step3p7():
    marks = ["<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>"]
    tok = tokenizer(marks, template := chat("<im_patch>"))
    images = tf.Step3p7ImageProcessor(
        size={"height": 64, "width": 64}, patch_size=32, max_image_size=256, vision_patch_size=8, downsampler_stride=4
    )
    processor = tf.Step3p7Processor(images, tok, chat_template=template)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "max_position_embeddings": 64,
    }
    text = (
        TEXT
        | of(tok)
        | {
            "head_dim": 16,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "share_expert_dim": 32,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "num_sliding_attention_heads": 4,
        }
    )
    config = tf.Step3p7Config(
        text_config=text, vision_config=tower, image_token_id=tok.convert_tokens_to_ids("<im_patch>")
    )
    return finished(tf.Step3p7ForConditionalGeneration(config), tok), processor


@recipe
def cohere_compass():
    tokens = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>"]
    start, end, image, video = tokens
    tok = tokenizer(tokens, template := chat(start + image + end, start + video + end))
    sizes = SIDES | {"size": PIXELS}
    processor = tf.CohereCompassProcessor(
        tf.CohereCompassImageProcessor(**sizes), tok, tf.CohereCompassVideoProcessor(**sizes), chat_template=template
    )
    ids = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            tok.convert_tokens_to_ids(tokens),
            strict=True,
        )
    )
    config = tf.CohereCompassConfig(
        text_config=TEXT
        | of(tok)
        | SLIDING
        | {
            "logit_scale": 0.25,
            "rope_parameters": {k: rope(2, 3, 3)["rope_parameters"] for k in ("sliding_attention", "full_attention")},
        },
        vision_config=TOWER | DEEPSTACK,
        **ids,
    )
    return finished(tf.CohereCompassForConditionalGeneration(config), tok), processor


@recipe
def qianfan_ocr():
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "image_token": "<IMG_CONTEXT>",
    }
    tok = tokenizer(["<image>"], template := chat("<image>"), named=named)
    images = tf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.QianfanOCRProcessor(images, tok, image_seq_length=4, chat_template=template)
    vision = SIGLIP | {"image_size": [32, 32], "patch_size": [8, 8]}
    config = tf.QianfanOCRConfig(
        text_config=TEXT | of(tok) | {"model_type": "qwen3", "head_dim": 16},
        vision_config=vision,
        image_token_id=tok.context_image_token_id,
        image_seq_length=4,
    )
    return finished(tf.QianfanOCRForConditionalGeneration(config), tok), processor


@recipe
def minicpmv4_7():
    tok, template, sizes = sliced()
    readers = tf.MiniCPMV4_6ImageProcessor(**sizes), tf.MiniCPMV4_6VideoProcessor(**sizes)
    processor = tf.MiniCPMV4_7Processor(*readers, tok, chat_template=template)
    text = HYBRID | rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    ids = {f"{n}_id": getattr(tok, f"{n}_token_id") for n in ("image_start", "image_end", "slice_start", "slice_end")}
    config = tf.MiniCPMV4_7Config(
        text_config=TEXT | of(tok) | text | {"model_type": "qwen3_5_text"},
        vision_config=SIGLIP | {"num_hidden_layers": 3, "image_size": 64},
        insert_layer_id=1,
        image_size=64,
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
        newline_id=tok("\n")["input_ids"][0],
        **ids,
    )
    return finished(tf.MiniCPMV4_7ForConditionalGeneration(config), tok), processor


@recipe
def muse_glimmer():
    marks = [
        "<|patch|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|video|>",
        "<|vid_frame_separator|>",
        "<|vid_start|>",
        "<|vid_end|>",
        "<|image|>",
    ]
    tok = tokenizer(marks, template := chat("<|patch|>", "<|video|>"))
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    processor = tf.MuseGlimmerProcessor(
        tf.MuseGlimmerImageProcessor(**sizes, max_image_tokens=64),
        tf.MuseGlimmerVideoProcessor(**sizes),
        tok,
        chat_template=template,
    )
    tower = {
        "patch_size": 8,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "layer_types": ["full_attention", "full_attention"],
    }
    text = TEXT | of(tok) | SLIDING | {"head_dim": 16}
    config = tf.MuseGlimmerConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=0 + tok.convert_tokens_to_ids("<|patch|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video|>"),
        out_hidden_size=128,
        projector_hidden_size=48,
    )
    return finished(tf.MuseGlimmerForConditionalGeneration(config), tok), processor


@recipe
def mistral_large4():
    tok = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], template := chat("[IMG]"))
    images = tf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = tf.PixtralProcessor(images, tok, patch_size=8, spatial_merge_size=2, chat_template=template)
    vision = SIGLIP | {"model_type": "pixtral", "head_dim": 16, "image_size": 64}
    text = (
        TEXT
        | of(tok)
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "head_dim": 8,
            "index_topk": 64,
            "index_head_dim": 16,
            "index_n_heads": 16,
        }
    )
    config = tf.MistralLarge4Config(
        text_config=text,
        vision_config=vision,
        spatial_merge_size=2,
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
    )
    return finished(tf.MistralLarge4ForConditionalGeneration(config), tok), processor


@recipe
def cosmos3_edge():
    start, end, image, video = tokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(tokens, template := chat(start + image + end, video))
    sizes = {"patch_size": 8, "merge_size": 2, "size": PIXELS}
    processor = tf.Cosmos3EdgeProcessor(
        tf.Cosmos3EdgeImageProcessor(**sizes), tok, tf.Cosmos3EdgeVideoProcessor(**sizes), chat_template=template
    )
    names = ("vision_start", "vision_end", "image", "video")
    ids = {f"{n}_token_id": tok.convert_tokens_to_ids(t) for n, t in zip(names, tokens, strict=True)}
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "num_patches": 64,
    }
    text = TEXT | of(tok) | rope(2, 3, 3) | {"head_dim": 16}
    config = tf.Cosmos3EdgeConfig(text_config=text, vision_config=tower, projector_hidden_size=48, **ids)
    return finished(tf.Cosmos3EdgeForConditionalGeneration(config), tok), processor


@recipe
def gemma4_unified():
    named = {f"{kind}_token": f"<|{kind}|>" for kind in ("image", "audio", "video")}
    named |= {"boi_token": "<|image>", "eoi_token": "<image|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tok = tokenizer([], template := chat("<|image|>", "<|video|>"), bos="<bos>", named=named)
    sizes = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    readers = (
        tf.Gemma4UnifiedAudioFeatureExtractor(),
        tf.Gemma4UnifiedImageProcessor(**sizes),
        tok,
        tf.Gemma4UnifiedVideoProcessor(**sizes),
    )
    processor = tf.Gemma4UnifiedProcessor(*readers, chat_template=template, image_seq_length=70)
    text = TEXT | of(tok) | SLIDING | {"head_dim": 16, "final_logit_softcapping": 30.0}
    vision = {
        "patch_size": 8,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 32,
        "mm_posemb_size": 64,
        "output_proj_dims": 32,
    }
    ids = {f"{k}_token_id": getattr(tok, f"{k}_token_id") for k in ("image", "video", "audio", "boi", "eoi")}
    config = tf.Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config=None, **ids)
    return finished(tf.Gemma4UnifiedForConditionalGeneration(config), tok), processor


@recipe
def hyperclovax_vision():
    tokens = ["<|IMAGE_PAD|>", "<|VIDEO_PAD|>"]
    named = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"}
    tok = tokenizer([], template := chat(*tokens), named=named)
    sizes = SIDES | {"size": PIXELS}
    processor = tf.HyperCLOVAXVisionV2Processor(
        tf.Qwen2VLImageProcessor(**sizes), tok, tf.Qwen2VLVideoProcessor(**sizes), chat_template=template
    )
    tower = TOWER | {"model_type": "qwen2_5_vl_vision", "window_size": 32, "fullatt_block_indexes": [1]}
    config = tf.HyperCLOVAXVisionV2Config(
        text_config=TEXT | of(tok) | {"model_type": "hyperclovax"},
        vision_config=tower,
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
    )
    return finished(tf.HyperCLOVAXVisionV2ForConditionalGeneration(config), tok), processor


@recipe
def granite_docling():
    tok = tokenizer(["<fake_token_around_image>", "<image>", "<global-img>", *TILES], template := chat("<image>"))
    images = tf.GraniteDoclingImageProcessor(size=SQUARE, max_patches=4)
    processor = tf.GraniteDoclingProcessor(images, tok, image_seq_len=4, chat_template=template)
    tower = SIGLIP | {
        "out_hidden_size": 64,
        "scale_factor": 2,
        "deepstack_visual_indexes": [0, 1],
        "use_fine_route": False,
    }
    config = tf.GraniteDoclingConfig(
        text_config=TEXT | of(tok) | {"embedding_multiplier": 1.0},
        vision_config=tower,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    return finished(tf.GraniteDoclingForConditionalGeneration(config), tok), processor


@recipe
def minimax_m3_vl():
    tokens = ["]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["]
    named = {"image_token": tokens[0], "video_token": tokens[1]}
    tok = tokenizer(tokens, template := chat(tokens[0], tokens[1]), named=named)
    sizes = SIDES | {"size": PIXELS}
    processor = tf.MiniMaxM3VLProcessor(
        tf.MiniMaxM3VLImageProcessor(**sizes), tok, tf.MiniMaxM3VLVideoProcessor(**sizes), chat_template=template
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    text = (
        TEXT
        | of(tok)
        | {
            "head_dim": 16,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "dense_intermediate_size": 96,
            "shared_intermediate_size": 32,
            "rotary_dim": 8,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_block_size": 8,
            "index_topk_blocks": 2,
            "layer_types": ["full_attention", "minimax_m3_sparse"],
        }
    )
    config = tf.MiniMaxM3VLConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        projector_hidden_size=48,
    )
    return finished(tf.MiniMaxM3SparseForConditionalGeneration(config), tok), processor
