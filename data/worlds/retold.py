"""A picture of one shape whose color is to be told, and another picture to be drawn of what was told.

The prompt shows a shape and asks for its color. What is to be drawn, by whoever reads the answer, stands in the row's
columns: `shape` and `place`, as in `one {text} {shape} {place}`, and `scene`, which says what the drawn picture must
hold. Nobody but the one who looks knows the color.
"""

from __future__ import annotations

import random
from typing import Any

from mmrl.data.worlds.compositions import PLACES, POSITIONS, SIZE
from mmrl.data.worlds.questions import World
from mmrl.data.worlds.shapes import Shapes
from mmrl.record import Prompt


class Retold(World):
    name = "retold"
    offers = ("color",)

    def __init__(self, skills: tuple[str, ...] = ()) -> None:
        super().__init__(skills)
        self.shapes = Shapes(self.skills)

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        return {**self.shapes.scene(rng, level, split), "asked": rng.choice(POSITIONS)}

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        first, position = scene["objects"][0], scene["asked"]
        drawn = {"shape": first["shape"], "color": first["color"], "count": 1, "position": position}
        wanted = {"size": SIZE, "background": "black", "objects": [drawn]}
        own = {"shape": first["shape"], "place": PLACES[position], "scene": wanted}
        return self.shapes.prompt(scene, id, columns | own)

    def render(self, scene: dict[str, Any]) -> Any:
        return self.shapes.render(scene)
