"""A stand-in for an image generator: the whole picture, smaller, inside surroundings in the colours of a description.

What is in the picture stays in it, as the paper's outpainting keeps the foreground, so counts, colours and kinds keep
their truth; boxes and points move with it. A real generator takes its place by `mmrl serve-samples my_file.py:draw`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageColor, ImageDraw

from mmrl.errors import ConfigError

BOXES, POINTS = ("box", "boxes"), ("point", "points")
SHARE = 0.75  # of the side that the old picture keeps
DIVIDED = ("temporal", "tracking", "segmentation", "polygon")


def surround(sample: Mapping[str, Any]) -> tuple[Image.Image, Any]:
    """(the new picture, its truth). Where the old one lies depends on the description alone."""
    image, task = sample["image"].convert("RGB"), str(sample.get("task"))
    if task in DIVIDED:
        raise ConfigError(f"`surround` moves boxes and points, and knows no truth of the task {task!r}")
    draws = hashlib.blake2b(sample["description"].encode(), digest_size=16).digest()
    width, height = (max(1, round(SHARE * side)) for side in image.size)
    left, top = (image.width - width) * draws[0] // 255, (image.height - height) * draws[1] // 255
    canvas = _ground(image.size, sample["description"], draws)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    scale = (width / image.width, height / image.height)
    moved = task in (*BOXES, *POINTS)
    return canvas, _moved(sample.get("solution"), scale, (left, top)) if moved else sample.get("solution")


def _ground(size: tuple[int, int], description: str, draws: bytes) -> Image.Image:
    """Stripes in the colours that the description names, else in greys."""
    named = [word for word in re.findall(r"[a-z]+", description.lower()) if word in ImageColor.colormap]
    colors = [ImageColor.getrgb(word) for word in named[:4]] or [(draws[2],) * 3, (draws[3],) * 3]
    canvas = Image.new("RGB", size, colors[0])
    pen, step = ImageDraw.Draw(canvas), max(2, size[0] // 8)
    for i in range(0, size[0], step):
        pen.rectangle((i, 0, i + step // 2, size[1]), fill=colors[i // step % len(colors)])
    return canvas


def _moved(value: Any, scale: tuple[float, float], at: tuple[int, int]) -> Any:
    """Coordinates x, y, x, y of a list, or of lists of them, in the new picture."""
    if isinstance(value, list | tuple) and all(isinstance(each, int | float) for each in value):
        return [round(each * scale[i % 2] + at[i % 2], 2) for i, each in enumerate(value)]
    if isinstance(value, list | tuple):
        return [_moved(each, scale, at) for each in value]
    raise ConfigError(f"`surround` moves lists of coordinates; got the truth {value!r:.80}")
