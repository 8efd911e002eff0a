"""Answers are derived again from the pixels, with none of the code that made them."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import ImageOps
from scipy import ndimage
from sklearn.datasets import load_digits

from mmrl.data.worlds import open_world
from mmrl.data.worlds.scenes import BACKGROUNDS, COLORS

PALETTE = COLORS | BACKGROUNDS
NAMES = list(PALETTE)
# Share of its box that a shape fills; crosses and triangles differ in the corners they touch.
FULL, ROUND = 0.97, 0.66
SHAPES = {name: name for name in ("circle", "square", "triangle", "cross")}
SHAPES |= {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}


def named_pixels(image) -> np.ndarray:
    """(H, W) index of the nearest palette colour of every pixel."""
    pixels = np.asarray(image.convert("RGB"), dtype=int)
    palette = np.array(list(PALETTE.values()))
    return ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)


def shape_of(mask: np.ndarray) -> str:
    """The shape of one filled region, from its fill and its corners."""
    if mask.mean() > FULL:
        return "square"
    if mask.mean() > ROUND:
        return "circle"
    return "triangle" if mask[-1, 0] and mask[-1, -1] else "cross"


def things(image) -> list[dict]:
    """Connected regions of one colour that are not background: shape, colour and box of each."""
    named = named_pixels(image)
    found = []
    for color in np.unique(named):
        if NAMES[color] in BACKGROUNDS:
            continue
        regions, _ = ndimage.label(named == color)
        for region in ndimage.find_objects(regions):
            rows, columns = region
            box = [columns.start, rows.start, columns.stop, rows.stop]
            found.append({"shape": shape_of(named[region] == color), "color": NAMES[color], "box": box})
    return found


def answer(text: str, image) -> str:
    """What somebody who only sees the picture would answer."""
    seen, size = things(image), image.size[0]
    words = re.findall(r"[a-z]+", text)
    shape = next(SHAPES[word] for word in words if word in SHAPES)
    if text.startswith("How many"):
        return str(sum(each["shape"] == shape for each in seen))
    colors = [w for w in words if w in COLORS]
    target = [e for e in seen if e["shape"] == shape and (not colors or e["color"] == colors[0])]
    assert len(target) == 1, f"{text!r} asks about one thing, the picture has {len(target)}"
    left, top, right, bottom = target[0]["box"]
    if text.startswith("What color"):
        return target[0]["color"]
    if text.startswith("Where"):
        return f"{'top' if top + bottom < size else 'bottom'} {'left' if left + right < size else 'right'}"
    return str([round(1000 * edge / size) for edge in (left, top, right, bottom)])


@pytest.mark.parametrize("level", range(1, 6))
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_about_shapes_follow_from_the_pixels(level, split):
    world = open_world("shapes", split=split, difficulty=level, size=80)
    skills = Counter()
    for index in range(80):
        prompt = world[index]
        assert answer(prompt.text, prompt.images[0]) == prompt.columns["solution"], prompt.id
        skills[prompt.columns["skill"]] += 1
    assert set(skills) == {"count", "color", "position", "box"}


def test_a_wrong_answer_is_not_what_the_pixels_say():
    """The check above can fail: in a mirror, positions and boxes are others."""
    world = open_world("shapes", difficulty=2, size=80)
    for index in range(80):
        prompt = world[index]
        if prompt.columns["skill"] in ("position", "box"):
            assert answer(prompt.text, ImageOps.mirror(prompt.images[0])) != prompt.columns["solution"]


def read_mosaic(image, side: int) -> list[int | None]:
    """The digit in every cell, by looking each picture up among scikit-learn's own; None for an empty cell."""
    data = load_digits()
    known = {
        image.tobytes(): label for image, label in zip((data.images * 16).astype(np.uint8), data.target, strict=True)
    }
    cell = image.size[0] // side
    labels: list[int | None] = []
    for place in range(side * side):
        column, row = place % side * cell, place // side * cell
        patch = np.asarray(image.convert("L").crop((column, row, column + cell, row + cell)))
        centres = ((np.arange(8) + 0.5) * cell / 8).astype(int)
        pixels = np.round(patch[np.ix_(centres, centres)] * 16.0 / 255)
        labels.append(None if not pixels.any() else int(known[(pixels * 16).astype(np.uint8).tobytes()]))
    return labels


@pytest.mark.parametrize("level", range(1, 6))
def test_answers_about_digits_follow_from_the_pixels(level):
    world = open_world("digits", split="test", difficulty=level, size=40)
    for index in range(40):
        prompt = world[index]
        side = {1: 2, 2: 2, 3: 2, 4: 3, 5: 4}[level]
        labels = read_mosaic(prompt.images[0], side)
        digits = [label for label in labels if label is not None]
        text, skill = prompt.text, prompt.columns["skill"]
        if skill == "largest":
            expected = max(digits)
        elif skill == "count":
            expected = digits.count(int(re.search(r"\d", text)[0]))
        elif side == 2:
            expected = labels[2 * ("bottom" in text) + ("right" in text)]
        else:
            row, column = map(int, re.findall(r"\d", text))
            expected = labels[(row - 1) * side + column - 1]
        assert str(expected) == prompt.columns["solution"], prompt.id
