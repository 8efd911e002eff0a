"""The models, prompts and rewards that benchmarks share: real classes built from a configuration, no download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmrl  # noqa: F401  (before transformers)
from mmrl.record import Prompt, Scores

PATCH, MERGE = 14, 2
QUESTION = "Describe this picture in a few words."
HIDDEN, LAYERS = 256, 4
VISION_HIDDEN, VISION_LAYERS = 128, 4


def build_vlm(folder: Path, seed: int = 0, vocabulary: int | None = None) -> None:
    """Save a 3.7 M-parameter Qwen2.5-VL with fan-in weights and its processor: 448 pixels a side are 256 tokens."""
    import transformers as tf

    from mmrl.pipelines.bases.models import build_tiny_qwen2_5_vl, fan_in_init, tiny_processor

    processor = tiny_processor("qwen2_5_vl")
    pixels = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": (64 * PATCH * MERGE) ** 2}
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    images = tf.Qwen2VLImageProcessor(size=pixels, **sizes)
    videos = tf.Qwen2VLVideoProcessor(size=pixels, cap_pixels_per_frame=False, min_frames=2, **sizes)
    tokenizer = processor.tokenizer
    processor = tf.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=processor.chat_template)
    config = build_tiny_qwen2_5_vl(tokenizer, hidden=HIDDEN, layers=LAYERS, vision_hidden=VISION_HIDDEN).config
    vision = config.vision_config
    vision.patch_size, vision.depth, vision.window_size = PATCH, VISION_LAYERS, 8 * PATCH
    vision.fullatt_block_indexes = [VISION_LAYERS - 1]
    config.text_config.max_position_embeddings = 32768
    config.text_config.vocab_size = vocabulary or config.text_config.vocab_size
    model = tf.Qwen2_5_VLForConditionalGeneration(config)
    fan_in_init(model, seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_pictures(folder: Path, side: int, count: int) -> list[str]:
    """`count` PNG files of side x side: smooth colours with some texture, different for each."""
    import numpy as np
    from PIL import Image

    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    names = []
    for index in range(count):
        waves = [np.sin(2 * np.pi * (c + 1) * (across + (index + 1) * down / 3) + index) for c in range(3)]
        noise = np.random.default_rng(index).normal(0, 12, (side, side, 3))
        pixels = (127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)
        names.append(os.fspath(folder / f"picture-{side}-{index}.png"))
        Image.fromarray(pixels).save(names[-1])
    return names


def prompts(pictures: Sequence[str | None]) -> list[Prompt]:
    """One question for each picture; None asks without one."""
    asked = []
    for index, picture in enumerate(pictures):
        media = [] if picture is None else [picture]
        content: list[dict[str, Any]] = [{"type": "image"} for _ in media] + [{"type": "text", "text": QUESTION}]
        asked.append(Prompt(f"p{index}", [{"role": "user", "content": content}], media, [], {}))
    return asked


def early_letters(completions: Sequence[str]) -> list[float]:
    """Share of letters before n: dense, so that random text gives every group a signal."""
    return [sum("a" <= c < "n" for c in text.lower()) / max(len(text), 1) for text in completions]


def score(outputs: Sequence[str], prompts: Sequence[Prompt]) -> Scores:
    import torch

    reward = torch.tensor(early_letters(outputs))
    return Scores({"early_letters": reward}, reward, (reward > 0.5).float())


def vlm_policy(folder: Path, new_tokens: int, *, forced: bool = True, **options: Any) -> Any:
    """The vision policy on a saved model; `forced`: end tokens cannot be sampled, so every response is cut."""
    from dataclasses import replace

    from mmrl.policies.language.config import LanguagePolicyConfig
    from mmrl.policies.language.vision import VisionPolicy

    config = LanguagePolicyConfig(model=os.fspath(folder), max_new_tokens=new_tokens, **options)
    policy = VisionPolicy.from_config(config)
    if forced:
        module = policy.inner
        suppressed = tuple(sorted({*module.distribution.suppressed, *policy.stopping.ids}))
        module.distribution = replace(module.distribution, suppressed=suppressed)
    return policy
