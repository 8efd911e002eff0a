"""A tiny Qwen2-VL: the one supported family that ships no base."""

from __future__ import annotations

from typing import Any

from mmrl.pipelines.bases import models


def tiny_qwen2_vl(seed: int = 0) -> tuple[Any, Any]:
    import transformers as tf

    parts = models.tiny_processor("qwen2_5_vl")
    processor = tf.Qwen2VLProcessor(
        parts.image_processor, parts.tokenizer, parts.video_processor, chat_template=parts.chat_template
    )
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 128,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": models.PATCH,
        "spatial_merge_size": models.MERGE,
        "temporal_patch_size": models.TEMPORAL_PATCH,
    }
    text = models._text_config(processor.tokenizer, 128, 2)
    config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, **models._token_ids(processor.tokenizer))
    model = models._with_generation_defaults(tf.Qwen2VLForConditionalGeneration(config), processor.tokenizer)
    models.fan_in_init(model, seed)
    return model.eval(), processor
