"""The mixture of still pictures the demo trains on: made shapes and real handwritten digits, half and half."""

from __future__ import annotations

import random
from typing import Any

from mmrl.data.worlds.digits import Digits
from mmrl.data.worlds.questions import World
from mmrl.data.worlds.shapes import Shapes
from mmrl.record import Prompt


class Stills(World):
    name = "stills"

    def __init__(self) -> None:
        self.worlds = {world.name: world for world in (Shapes(), Digits())}

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        name = rng.choice(list(self.worlds))
        return {"world": name, **self.worlds[name].scene(rng, level, split)}

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        return self.worlds[scene["world"]].prompt(scene, id, columns)

    def render(self, scene: dict[str, Any]) -> Any:
        return self.worlds[scene["world"]].render(scene)
