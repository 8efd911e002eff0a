"""Still scenes of coloured shapes: how many, which colour, where, and in which box.

Everything sits on an 8-pixel grid of a 64-pixel picture, so box corners are multiples of 125 in the 0-1000
coordinates that vision-language models speak. Difficulty adds objects, colours and sizes.
"""

from __future__ import annotations

import random
from typing import Any

from mmrl.data.worlds.questions import Question, Still
from mmrl.data.worlds.scenes import BACKGROUNDS, COLORS, SHAPES, draw_objects, place, plural

SIZE, GRID = 64, 8
MOST_OBJECTS = 7
SKILLS = ("count", "color", "position", "box")


class Shapes(Still):
    """`skills`: which questions are asked, any of count, color, position and box."""

    name = "shapes"
    offers = SKILLS

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        skill = rng.choice(self.skills)
        objects = _count_objects(rng, level) if skill == "count" else _named_objects(rng, level)
        background = rng.choice(list(BACKGROUNDS)) if level > 1 else "black"
        return {"size": SIZE, "background": background, "objects": objects, "skill": skill}

    def ask(self, scene: dict[str, Any]) -> Question:
        """The first object of a scene is the one the question is about."""
        target, skill = scene["objects"][0], scene["skill"]
        shape, thing = target["shape"], f"{target['color']} {target['shape']}"
        if skill == "count":
            count = sum(each["shape"] == shape for each in scene["objects"])
            return Question(f"How many {plural(shape)} are there?", str(count), "numeric", skill)
        if skill == "color":
            return Question(f"What color is the {shape}?", target["color"], "exact", skill)
        if skill == "position":
            return Question(f"Where is the {thing}?", quadrant(target["box"], scene["size"]), "exact", skill)
        return Question(f"Give the box of the {thing}.", relative_box(target["box"], scene["size"]), "box", skill)

    def render(self, scene: dict[str, Any]) -> Any:
        return draw_objects(scene["size"], scene["background"], scene["objects"])


def quadrant(box: list[int], size: int) -> str:
    """`top left` ... by the centre of a box, which must not lie on a middle line."""
    x, y = box[0] + box[2], box[1] + box[3]
    return f"{'top' if y < size else 'bottom'} {'left' if x < size else 'right'}"


def relative_box(box: list[int], size: int) -> str:
    """`[x1, y1, x2, y2]` from 0 to 1000, whatever the size of the picture."""
    return str([1000 * edge // size for edge in box])


def _count_objects(rng: random.Random, level: int) -> list[dict[str, Any]]:
    """One to `2 + level` objects of the shape asked for, up to `level - 1` others, at most seven in all."""
    shape = rng.choice(SHAPES)
    others = [each for each in SHAPES if each != shape]
    count = rng.randint(1, 2 + level)
    distractors = min(rng.randint(0, level - 1), MOST_OBJECTS - count)
    kinds = [shape] * count + [rng.choice(others) for _ in range(distractors)]
    return _objects(rng, kinds, level, place(rng, SIZE, [2 * GRID] * len(kinds), GRID // 2))


def _named_objects(rng: random.Random, level: int) -> list[dict[str, Any]]:
    """`level` objects, at most four, all of different shape, the first off the middle lines."""
    kinds = rng.sample(SHAPES, min(level, len(SHAPES)))
    sides = [2 * GRID] + [rng.choice((2, 3) if level > 3 else (2,)) * GRID for _ in kinds[1:]]
    boxes = place(rng, SIZE, sides, GRID)
    while SIZE in (boxes[0][0] + boxes[0][2], boxes[0][1] + boxes[0][3]):
        boxes = place(rng, SIZE, sides, GRID)
    return _objects(rng, kinds, level, boxes)


def _objects(rng: random.Random, kinds: list[str], level: int, boxes: list[list[int]]) -> list[dict[str, Any]]:
    colors = [rng.choice(list(COLORS)[: 3 + level]) for _ in kinds]
    return [
        {"shape": shape, "color": color, "box": box} for shape, color, box in zip(kinds, colors, boxes, strict=True)
    ]
