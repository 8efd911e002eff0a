"""The mixture of still pictures the demo trains on: made shapes and real handwritten digits, half and half."""

from __future__ import annotations

import random
from typing import Any

from mmrl.data.worlds.digits import Digits
from mmrl.data.worlds.questions import Still, World
from mmrl.data.worlds.shapes import Shapes
from mmrl.record import Prompt


class Stills(World):
    name = "stills"

    offers = tuple(dict.fromkeys((*Shapes.offers, *Digits.offers)))

    def __init__(self, skills: tuple[str, ...] = ()) -> None:
        super().__init__(skills)
        asked = {kind: tuple(skill for skill in kind.offers if skill in self.skills) for kind in (Shapes, Digits)}
        self.worlds: dict[str, Still] = {kind.name: kind(own) for kind, own in asked.items() if own}

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        name = rng.choice(list(self.worlds))
        return {"world": name, **self.worlds[name].scene(rng, level, split)}

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        return self.worlds[scene["world"]].prompt(scene, id, columns)

    def render(self, scene: dict[str, Any]) -> Any:
        return self.worlds[scene["world"]].render(scene)
