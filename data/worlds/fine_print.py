"""Pictures whose digits can only be read after a closer look.

Four handwritten digits of 8 x 8 pixels stand in a picture of 640 x 640, dark grey on black and all with the same
amount of ink. Shown whole at 64 x 64 each is less than a pixel, a few grey levels from black: who knows all digits in
this form tells them apart hardly better than by chance (`tests/worlds/test_hidden.py` measures it). A crop of one
place, 16 x 16 pixels, shows the digit alone and large.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np

from mmrl.data.worlds.digits import digit_images, handwriting
from mmrl.data.worlds.questions import Question, Still

SIZE, CROP, DIGIT = 640, 16, 8
INK = 3.0
"""Sum of a digit's pixels from 0 to 1."""
PLACES = {
    "top left": (200, 200), "top right": (700, 200), "bottom left": (200, 700), "bottom right": (700, 700),
}  # fmt: skip
"""Left and top of each place from 0 to 1000; a place is 25 wide and high, 16 pixels."""
SIDE = 1000 * CROP // SIZE
SHIFTS = (3, 5)
"""Least and most of a digit's distance from the left and the top of its place."""


class FinePrint(Still):
    """Every picture has four digits; the question names one of the four places."""

    name = "fine_print"
    offers = ("cell",)

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        """The digit asked about is drawn by its label first, so that every answer is as frequent as any other."""
        asked = rng.choice(list(PLACES))
        digits = {place: rng.choice(_by_label(split)[rng.randrange(10)]) for place in PLACES}
        shifts = {place: [rng.randint(*SHIFTS) for _ in "xy"] for place in PLACES}
        return {"size": SIZE, "digits": digits, "shifts": shifts, "skill": "cell", "asked": asked}

    def ask(self, scene: dict[str, Any]) -> Question:
        label = digit_images()[1][scene["digits"][scene["asked"]]]
        return Question(f"Which digit is at the {scene['asked']}?", str(label), "numeric", "cell")

    def render(self, scene: dict[str, Any]) -> Any:
        from PIL import Image

        picture = np.zeros((SIZE, SIZE), np.uint8)
        for place, (x, y) in PLACES.items():
            right, down = scene["shifts"][place]
            left, top = x * SIZE // 1000 + right, y * SIZE // 1000 + down
            picture[top : top + DIGIT, left : left + DIGIT] = inked(scene["digits"][place])
        return Image.fromarray(picture).convert("RGB")


def box_of(place: str) -> list[int]:
    """[left, top, right, bottom] of a place, from 0 to 1000."""
    x, y = PLACES[place]
    return [x, y, x + SIDE, y + SIDE]


@functools.cache
def inked(digit: int) -> np.ndarray:
    """(8, 8) uint8 pixels of a digit, lightened or darkened until they sum up to `INK`."""
    pixels = digit_images()[0][digit].astype(np.float64) / 255
    for _ in range(100):
        pixels = np.clip(pixels * INK / pixels.sum(), 0, 1)
    return np.round(pixels * 255).astype(np.uint8)


@functools.cache
def _by_label(split: str) -> list[list[int]]:
    """The digits a split may show, by label."""
    labels = digit_images()[1]
    return [[i for i in handwriting()[split] if labels[i] == label] for label in range(10)]
