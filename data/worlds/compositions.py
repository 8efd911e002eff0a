"""Captions of colour, shape, count and position, for generators, with the picture they describe.

    level 1   "two red circles on the left"                                  black background
    level 2   "two red circles on the left, white background"
    level 3+  "two red circles on the left and one blue square on the right"

A scene is what a verifier needs: `{"size", "background", "objects": [{"shape", "color", "count", "position"}]}`.
`render` draws one of the pictures that satisfy it.
"""

from __future__ import annotations

import random
from typing import Any

from mmrl.data.worlds.questions import World
from mmrl.data.worlds.scenes import BACKGROUNDS, COLORS, SHAPES, draw_objects, plural
from mmrl.record import Prompt

SIZE, SIDE = 24, 7
COUNTS = {1: "one", 2: "two", 3: "three"}
POSITIONS = ("left", "right", "top", "bottom")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


class Compositions(World):
    name = "compositions"

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        first = _group(rng, rng.choice(POSITIONS), most=3 if level > 1 else 2)
        objects = [first]
        if level > 2:
            objects.append(_group(rng, OPPOSITE[first["position"]], most=level - 2))
        background = rng.choice(list(BACKGROUNDS)) if level == 2 else "black"
        return {"size": SIZE, "background": background, "objects": objects}

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        text = caption(scene)
        columns = columns | {"scene": scene, "caption": text, "solution": text, "task": "composition"}
        return Prompt(id=id, messages=[{"role": "user", "content": text}], columns=columns)

    def render(self, scene: dict[str, Any], rng: random.Random | None = None) -> Any:
        """One picture of this scene; which cells along their side the objects take is drawn from `rng`."""
        rng = rng or random.Random(0)
        objects = []
        for group in scene["objects"]:
            boxes = _slots(rng, scene["size"], group["position"], group["count"])
            objects += [{"shape": group["shape"], "color": group["color"], "box": box} for box in boxes]
        return draw_objects(scene["size"], scene["background"], objects)


def caption(scene: dict[str, Any]) -> str:
    groups = []
    for group in scene["objects"]:
        count, shape = group["count"], plural(group["shape"], group["count"])
        groups.append(f"{COUNTS[count]} {group['color']} {shape} {PLACES[group['position']]}")
    background = "" if scene["background"] == "black" else f", {scene['background']} background"
    return " and ".join(groups) + background


PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}


def _group(rng: random.Random, position: str, most: int) -> dict[str, Any]:
    return {
        "shape": rng.choice(SHAPES),
        "color": rng.choice(list(COLORS)),
        "count": rng.randint(1, most),
        "position": position,
    }


def _slots(rng: random.Random, size: int, position: str, count: int) -> list[list[int]]:
    """Boxes in `count` of the three cells along one side of a 3 x 3 grid."""
    cell, edge = size // 3, (0 if position in ("left", "top") else 2)
    boxes = []
    for along in sorted(rng.sample(range(3), count)):
        column, row = (edge, along) if position in ("left", "right") else (along, edge)
        boxes.append([column * cell, row * cell, column * cell + SIDE, row * cell + SIDE])
    return boxes
