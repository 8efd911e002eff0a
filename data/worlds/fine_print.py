"""Pictures whose digits can only be read after a closer look.

Four handwritten digits of 8 x 8 pixels are etched into a grey picture of 640 x 640: of each only the fine structure is
left, what no plane or parabola over its pixels explains. Shown whole at 64 x 64 nothing of it remains: the picture is
the same for all digits, to the last grey level (`tests/worlds/test_hidden.py`). A crop of one place, 16 x 16 pixels,
shows the digit alone and large.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from typing import Any

import numpy as np

from mmrl.data.worlds.digits import digit_images, handwriting
from mmrl.data.worlds.questions import Question, Still, asked_rarest

SIZE, CROP, DIGIT = 640, 16, 8
GREY, DEPTH = 128, 120
PLACES = {
    "top left": (200, 200), "top right": (700, 200), "bottom left": (200, 700), "bottom right": (700, 700),
}  # fmt: skip
"""Left and top of each place from 0 to 1000; a place is 25 wide and high, 16 pixels."""
SIDE = 1000 * CROP // SIZE


class FinePrint(Still):
    """Every picture has four digits; the question names one of the four places."""

    name = "fine_print"
    offers = ("cell",)

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        """Digits are drawn by their label first, so that every answer is as frequent as any other."""
        digits = {place: rng.choice(_by_label(split)[rng.randrange(10)]) for place in PLACES}
        return {"size": SIZE, "digits": digits, "skill": "cell", "asked": rng.choice(list(PLACES))}

    def held_out(self, scene: dict[str, Any], asked: Counter[Any]) -> dict[str, Any]:
        labels = digit_images()[1]
        return asked_rarest(scene, {place: str(labels[digit]) for place, digit in scene["digits"].items()}, asked)

    def ask(self, scene: dict[str, Any]) -> Question:
        label = digit_images()[1][scene["digits"][scene["asked"]]]
        return Question(f"Which digit is at the {scene['asked']}?", str(label), "numeric", "cell")

    def render(self, scene: dict[str, Any]) -> Any:
        from PIL import Image

        picture = np.full((SIZE, SIZE), GREY, np.uint8)
        for place, (x, y) in PLACES.items():
            left, top = (n * SIZE // 1000 + (CROP - DIGIT) // 2 for n in (x, y))
            picture[top : top + DIGIT, left : left + DIGIT] = etched()[scene["digits"][place]]
        return Image.fromarray(picture).convert("RGB")


def box_of(place: str) -> list[int]:
    """[left, top, right, bottom] of a place, from 0 to 1000."""
    x, y = PLACES[place]
    return [x, y, x + SIDE, y + SIDE]


@functools.cache
def etched() -> np.ndarray:
    """(1797, 8, 8) uint8: each digit without its best fit by polynomials of degree 2, around grey."""
    pixels = digit_images()[0].reshape(-1, DIGIT**2) / 255
    y, x = np.mgrid[-1 : 1 : DIGIT * 1j, -1 : 1 : DIGIT * 1j]
    smooth = np.stack([(x**i * y**j).ravel() for i in range(3) for j in range(3 - i)], axis=1)
    basis, _ = np.linalg.qr(smooth)
    fine = pixels - pixels @ basis @ basis.T
    fine /= abs(fine).max(1, keepdims=True)
    return np.round(GREY + DEPTH * fine).astype(np.uint8).reshape(-1, DIGIT, DIGIT)


@functools.cache
def _by_label(split: str) -> list[list[int]]:
    """The digits a split may show, by label."""
    labels = digit_images()[1]
    return [[i for i in handwriting()[split] if labels[i] == label] for label in range(10)]
