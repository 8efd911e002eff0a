"""Small pictures and clips for rewards that look at pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def plain(color: Any, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def noise(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def square(x: int, y: int, side: int = 8, size: int = 32, color: Any = (220, 30, 30)) -> Image.Image:
    """A square of `side` with its corner at (x, y), on black."""
    image = plain((0, 0, 0), size)
    ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=color)
    return image


def gliding(steps: Sequence[int] = range(0, 24, 4)) -> list[Image.Image]:
    """A clip of a square that goes right."""
    return [square(x, 12) for x in steps]
