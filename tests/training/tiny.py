"""A tiny real policy on real images, and a score that can be learned in a few steps."""

import torch
from PIL import Image

from mmrl.pipelines.bases.models import tiny_vlm
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.record import Prompt, Scores

COLOURS = [(220, 30, 30), (30, 60, 220), (20, 180, 60), (230, 210, 40)]


def make_prompts(count: int) -> list[Prompt]:
    """Plain images of four colours, one question."""
    prompts = []
    for i in range(count):
        image = Image.new("RGB", (64, 64), COLOURS[i % 4])
        content = [{"type": "image"}, {"type": "text", "text": f"Which colour is it? {i}"}]
        prompts.append(Prompt(f"p{i}", [{"role": "user", "content": content}], [image], [], {"solution": "red"}))
    return prompts


def score_vowels(outputs, prompts) -> Scores:
    """Share of vowels in the answer: dense, so that every group has a signal."""
    values = [sum(c in "aeiou" for c in o) / max(len(o), 1) for o in outputs]
    reward = torch.tensor(values, dtype=torch.float32)
    return Scores({"vowels": reward}, reward, (reward > 0.5).float())


def make_policy(**changes) -> VisionPolicy:
    model, processor = tiny_vlm("qwen3_vl", seed=0)
    config = LanguagePolicyConfig(**{"model": "tiny", "max_new_tokens": 6, **changes})
    return VisionPolicy(model, processor, config, seed=0)
