"""Tiny real models with fan-in weights, made scenes, and rollouts to score."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from mmrl.policies.language import LanguagePolicyConfig
from mmrl.policies.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def picture(color: str, size: tuple[int, int] = (64, 64), spots: int = 2) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for spot in range(spots):
        x = 8 + 16 * spot
        draw.ellipse([x, 20, x + 14, 40], fill=color)
    return image


def image_prompt(name: str, *images: Image.Image, question: str = "What color is the circle?") -> Prompt:
    parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    return Prompt(id=name, messages=[{"role": "user", "content": parts}], images=list(images))


def mixed_prompts() -> list[Prompt]:
    """One image, two images of unequal size, no image, and another size."""
    return [
        image_prompt("one", picture("red")),
        image_prompt("two", picture("blue", (80, 48)), picture("green", (48, 48), 1), question="Which one is green?"),
        image_prompt("none", question="How many is two and one?"),
        image_prompt("wide", picture("yellow", (112, 32), 3), question="How many circles?"),
    ]


def requests(prompts: list[Prompt], count: int = 4) -> list[Request]:
    return [Request(prompt, count, group) for group, prompt in enumerate(prompts)]


@pytest.fixture(scope="session")
def tiny():
    """`tiny(family)` -> a fresh (model, processor)."""
    from mmrl.pipelines.bases.models import tiny_vlm

    return lambda family="qwen3_vl", seed=0: tiny_vlm(family, seed)


@pytest.fixture(scope="session")
def make_policy(tiny):
    def make(family: str = "qwen3_vl", **options) -> VisionPolicy:
        options = {"model": "tiny", "max_new_tokens": 10} | options
        return VisionPolicy(*tiny(family), LanguagePolicyConfig(**options))

    return make


@pytest.fixture(scope="session")
def policies(make_policy):
    """One policy per family, for tests that leave it as it was."""
    return {family: make_policy(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def rolled(policies):
    """Rollouts of `mixed_prompts`, four each."""
    return {f: policy.rollout(requests(mixed_prompts()), Key(3)) for f, policy in policies.items()}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
