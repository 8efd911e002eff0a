"""Mosaics of real handwritten digits: how many, the largest, which one in a cell.

The 1,797 digits of 8 x 8 pixels are the test part of "Optical Recognition of Handwritten Digits" (UCI, CC BY
4.0) as scikit-learn ships them. They are divided by the hash of their own pixels, so that held-out mosaics
show handwriting that no training mosaic shows. Difficulty adds cells.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np

from mmrl.data.worlds.questions import Question, Still
from mmrl.data.worlds.scenes import split_of
from mmrl.errors import DataError

SIZE = 64
SIDES = {1: 2, 2: 2, 3: 2, 4: 3, 5: 4}  # cells on a side, by difficulty
FILLED = {1: 1, 2: 2, 3: 4, 4: 9, 5: 16}  # cells that hold a digit
EMPTY = -1
SKILLS = ("cell", "largest", "count")


class Digits(Still):
    name = "digits"
    offers = SKILLS

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        side, cells = SIDES[level], [EMPTY] * SIDES[level] ** 2
        filled = sorted(rng.sample(range(len(cells)), FILLED[level]))
        for cell in filled:
            cells[cell] = rng.choice(handwriting()[split])
        skills = [each for each in self.skills if each != "count" or len(filled) > 1]
        if not skills:
            raise DataError(f"world 'digits': difficulty {level} shows one digit, of which there is nothing to count; "
                            "expected difficulty 2 or more, or another skill beside 'count'")  # fmt: skip
        skill = rng.choice(skills)
        place = rng.choice(filled)
        asked = {"cell": place, "count": int(digit_images()[1][cells[place]])}.get(skill)
        return {"size": SIZE, "side": side, "cells": cells, "skill": skill, "asked": asked}

    def ask(self, scene: dict[str, Any]) -> Question:
        labels = [int(digit_images()[1][cell]) for cell in scene["cells"] if cell != EMPTY]
        skill, asked = scene["skill"], scene["asked"]
        if skill == "largest":
            return Question("What is the largest digit?", str(max(labels)), "numeric", skill)
        if skill == "count":
            return Question(f"How many digits are {asked}?", str(labels.count(asked)), "numeric", skill)
        label = int(digit_images()[1][scene["cells"][asked]])
        return Question(f"Which digit is {_cell_name(asked, scene['side'])}?", str(label), "numeric", skill)

    def render(self, scene: dict[str, Any]) -> Any:
        from PIL import Image

        side, size = scene["side"], scene["size"]
        cell = size // side
        picture = Image.new("RGB", (size, size))
        for place, index in enumerate(scene["cells"]):
            if index == EMPTY:
                continue
            digit = Image.fromarray(digit_images()[0][index]).resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(digit.convert("RGB"), (place % side * cell, place // side * cell))
        return picture


def _cell_name(cell: int, side: int) -> str:
    row, column = divmod(cell, side)
    if side == 2:
        return f"at the {('top', 'bottom')[row]} {('left', 'right')[column]}"
    return f"in row {row + 1} column {column + 1}"


@functools.cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(1797, 8, 8)` uint8 from 0 to 255, and labels `(1797,)`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).astype(np.uint8), data.target


@functools.cache
def handwriting() -> dict[str, list[int]]:
    """Indices of the digits each split may show."""
    digits: dict[str, list[int]] = {"train": [], "test": []}
    for index, pixels in enumerate(digit_images()[0]):
        digits[split_of({"digit": pixels.tolist()})].append(index)
    return digits
