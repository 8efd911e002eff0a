"""What all worlds share: keyed randomness, the split rule, the palette, and how a shape is drawn.

A scene is a JSON-able dictionary that says everything about a picture, so that its hash names its content.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

from mmrl.errors import DataError, unknown
from mmrl.randomness import Key

SPLITS = ("train", "test")
TEST_SHARE = 0.3
ASKED = ("skill", "asked", "world")  # the keys of a scene that say nothing of its picture
LEVELS = range(1, 6)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (20, 160, 40),
    "blue": (30, 60, 230),
    "yellow": (245, 215, 20),
    "purple": (140, 30, 170),
    "orange": (250, 130, 10),
    "cyan": (20, 200, 220),
    "pink": (250, 120, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "square", "triangle", "cross")


def scene_hash(scene: dict[str, Any]) -> str:
    """64 hex digits naming the content of a scene: equal scenes, equal names, on every machine."""
    return hashlib.sha256(json.dumps(scene, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def picture_hash(scene: dict[str, Any]) -> str:
    """The hash of what a scene shows, whatever is asked about it and in whichever order objects are listed."""
    shown = {key: value for key, value in scene.items() if key not in ASKED}
    if "objects" in shown:
        shown["objects"] = sorted(shown["objects"], key=lambda each: json.dumps(each, sort_keys=True))
    return scene_hash(shown)


def split_of(scene: dict[str, Any]) -> str:
    """The split a scene belongs to, decided by the hash of what it shows: no picture can be in both."""
    return "test" if int(picture_hash(scene)[:8], 16) < TEST_SHARE * 2**32 else "train"


def keyed_random(key: Key) -> random.Random:
    """A `random.Random` that draws the same numbers for the same key on every machine."""
    return random.Random(key.number)


def check_level(level: int) -> int:
    if level not in LEVELS:
        raise DataError(f"difficulty {level!r}: expected a whole number from {LEVELS[0]} to {LEVELS[-1]}")
    return level


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise DataError(unknown("split", split, SPLITS))
    return split


def plural(shape: str, count: int = 2) -> str:
    """`circles`, `crosses`; singular for a count of one."""
    if count == 1:
        return shape
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def draw_shape(draw: Any, shape: str, box: Sequence[int], color: tuple[int, int, int]) -> None:
    """Fill `box` (left, top, right, bottom; right and bottom exclusive) with a shape that touches its edges."""
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=color)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=color)
    elif shape == "triangle":
        draw.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=color)
    elif shape == "cross":
        third = (right - left + 1) // 3
        draw.rectangle((left + third, top, right - third, bottom), fill=color)
        draw.rectangle((left, top + third, right, bottom - third), fill=color)
    else:
        raise DataError(unknown("shape", shape, SHAPES))


def draw_objects(size: int, background: str, objects: Sequence[dict[str, Any]]) -> Any:
    """A `size` x `size` RGB picture of objects with `shape`, `color` and `box`."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), BACKGROUNDS[background])
    draw = ImageDraw.Draw(image)
    for each in objects:
        draw_shape(draw, each["shape"], each["box"], COLORS[each["color"]])
    return image


def free_boxes(size: int, side: int, grid: int, taken: Sequence[Sequence[int]]) -> list[list[int]]:
    """Boxes of `side` on a `grid`, inside the picture, at least one pixel from every box in `taken`."""
    starts = range(0, size - side + 1, grid)
    boxes = ([x, y, x + side, y + side] for y in starts for x in starts)
    return [box for box in boxes if all(_apart(box, other) for other in taken)]


def place(rng: random.Random, size: int, sides: Sequence[int], grid: int) -> list[list[int]]:
    """Boxes of these sides that do not touch; starts over when the picture is full too early."""
    while True:
        boxes: list[list[int]] = []
        for side in sides:
            if free := free_boxes(size, side, grid, boxes):
                boxes.append(rng.choice(free))
        if len(boxes) == len(sides):
            return boxes


def _apart(a: Sequence[int], b: Sequence[int]) -> bool:
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
