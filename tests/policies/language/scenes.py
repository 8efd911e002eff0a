"""Made scenes and small helpers of the language policies' tests."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from mmrl.media import Frames, VideoSampling
from mmrl.policies.language.encoded import Encoded
from mmrl.record import Prompt, Request

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


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


def video_prompt(name: str, *clips: int, images: tuple = (), question: str = "When does it move?") -> Prompt:
    parts = [{"type": "video"} for _ in clips] + [{"type": "image"} for _ in images]
    parts.append({"type": "text", "text": question})
    return Prompt(name, [{"role": "user", "content": parts}], images=list(images), videos=list(clips))


def mixed_prompts() -> list[Prompt]:
    """One image, two images of unequal size, no image, and another size."""
    two = picture("blue", (80, 48)), picture("green", (48, 48), 1)
    return [
        image_prompt("one", picture("red")),
        image_prompt("two", *two, question="Which one is green?"),
        image_prompt("none", question="How many is two and one?"),
        image_prompt("wide", picture("yellow", (112, 32), 3), question="How many circles?"),
    ]


def clip_prompts() -> list[Prompt]:
    """One clip, two clips of unequal length and size, an image, a clip with an image, and neither."""
    red = picture("red")
    return [
        video_prompt("clip", 1),
        video_prompt("clips", 2, 3),
        video_prompt("still", images=(red,)),
        video_prompt("both", 5, images=(red,)),
        video_prompt("bare"),
    ]


def read_made_clip(clip: int, sampling: VideoSampling) -> Frames:
    """4, 6 or 8 frames of noise, 32 or 48 pixels high, a quarter of a second apart."""
    count, height = 4 + 2 * (clip % 3), 32 + 16 * (clip % 2)
    generator = torch.Generator().manual_seed(clip)
    pixels = torch.randint(0, 256, (count, 3, height, 64), generator=generator, dtype=torch.uint8)
    return Frames(pixels, list(range(0, 6 * count, 6)), 24.0, 6 * count, (240, 320), "made", str(clip))


def requests(prompts: list[Prompt], count: int = 4) -> list[Request]:
    return [Request(prompt, count, group) for group, prompt in enumerate(prompts)]


def generated(policy, entry: Encoded, limit: int) -> list[int]:
    """What transformers writes greedily."""
    tokens = policy.inner.core.generate(
        input_ids=entry.ids[None],
        mm_token_type_ids=entry.token_types[None],
        attention_mask=torch.ones_like(entry.ids)[None],
        **entry.media,
        max_new_tokens=limit,
        do_sample=False,
        suppress_tokens=list(policy.family.suppressed),
    )
    return tokens[0, len(entry) :].tolist()


def gradients(policy) -> dict[str, torch.Tensor]:
    """Copies of all gradients by name; the gradients themselves are cleared."""
    found = {n: p.grad.clone() for n, p in policy.module.named_parameters() if p.grad is not None}
    policy.module.zero_grad(set_to_none=True)
    return found


def relative_error(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest difference over the largest entry, over all tensors."""
    assert got.keys() == wanted.keys()
    scale = max(w.abs().max() for w in wanted.values())
    return float(max((got[n] - wanted[n]).abs().max() for n in wanted) / scale)
