"""What the self-check shows a model: pictures of unlike shapes, several in a prompt, none, and a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmrl.media import Frames
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.families.default import Family


@dataclass(frozen=True)
class Probe:
    """One prompt.

    parts   of its message: a text, or (width, height) of a picture, or (frames, width, height) of a clip
    seed    of the pixels
    needed  a model that cannot read it is refused; others go without
    """

    name: str
    parts: tuple[str | tuple[int, ...], ...]
    seed: int = 0
    needed: bool = False

    def changed(self) -> Probe:
        """With other pixels."""
        return replace(self, seed=self.seed + 1000)

    def encoded(self, family: Family, core: Any) -> Encoded:
        content: list[dict[str, str]] = []
        images, clips = [], []
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            elif len(part) == 2:
                content.append({"type": "image"})
                width, height = part
                images.append(picture(width, height, self.seed + index))
            else:
                content.append({"type": "video"})
                frames, width, height = part
                clips.append(_clip(frames, width, height, self.seed + index))
        messages = [{"role": "user", "content": content}]
        text = family.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return family.encode(core, text, images, clips)


def probes(family: Family, *, video: bool) -> Sequence[Probe]:
    """A tall picture, two pictures one of which is larger than a tile, text alone, and for video policies two clips."""
    side = _tile(family)
    tall, wide = (_even(0.6 * side), _even(1.5 * side)), (_even(1.4 * side), _even(0.9 * side))
    asked = [
        Probe("one picture", (tall, "What is in the picture?"), 1, needed=True),
        Probe("two pictures", ("Look at", wide, "and at", tall, "How many are red?"), 2),
        Probe("text alone", ("How many are two and one?",), 3),
    ]
    if video:
        unit = family.factor or 16
        frames = max(4, 2 * family.temporal_patch)
        asked.append(Probe("a clip", ((frames, 3 * unit, 2 * unit), "What moves?"), 4, needed=True))
        asked.append(Probe("a longer clip", ((frames + 2 * family.temporal_patch, 2 * unit, 3 * unit), "And here?"), 5))
    return asked


def _tile(family: Family) -> int:
    """Pixels of a side the processor cuts or resizes pictures to; a small picture where it takes any size."""
    size = getattr(family.processor.image_processor, "size", None)
    sides = [getattr(size, name, None) or (size or {}).get(name) for name in ("height", "longest_edge")] if size else []
    known = [side for side in sides if isinstance(side, int) and side <= 1024]
    return known[0] if known else 64


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


def picture(width: int, height: int, seed: int) -> Any:
    from PIL import Image

    pixels = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.NEAREST)


def _clip(count: int, width: int, height: int, seed: int) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return Frames(pixels, list(range(count)), 2.0, count, (height, width), "made", str(seed))
