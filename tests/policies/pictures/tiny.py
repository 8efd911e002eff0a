"""A Janus of a few thousand weights, built from its configuration, that writes 4 x 4 tokens into 8 x 8 pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmrl.policies.pictures.policy import JanusPolicy, PicturePolicyConfig

SHIPPED = Path(__file__).parents[3] / "data" / "assets" / "tiny_vlm"


def tiny_janus() -> tuple[Any, Any]:
    """(model, tokenizer)"""
    from transformers import (
        AutoTokenizer,
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template = None
    size = len(tokenizer)
    wide = 16
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=size + 2, hidden_size=wide, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, bos_token_id=size, pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=wide, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=2,
            projection_dim=wide, num_image_tokens=16,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=4, num_embeddings=24, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
            num_res_blocks=1, projection_dim=wide, image_token_embed_dim=wide,
        ),
        image_token_id=size + 1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for part in (model.model.generation_head, model.model.generation_embeddings, model.model.vqmodel.quantize):
            for weight in part.parameters():
                weight.mul_(20)  # so that tokens differ, and pictures with them
    said = model.generation_config
    said._from_model_config = False  # a file of its own, as checkpoints have it
    said.bos_token_id, said.pad_token_id = size, tokenizer.pad_token_id
    said.generation_kwargs = {"boi_token_id": size + 1}
    return model, tokenizer


def picture_policy(**options: Any) -> JanusPolicy:
    return JanusPolicy(*tiny_janus(), PicturePolicyConfig(model="tiny", **options))


def saved(folder: Path) -> str:
    for part in tiny_janus():
        part.save_pretrained(folder)
    return str(folder)
