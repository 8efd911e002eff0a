"""Clips in which things happen between the frames that are looked at first.

A clip of 24 frames, 6 seconds, is seen in 4 frames: 0, 8, 15 and 23. In each gap one shape flashes up in a colour of
its own and is gone before the next of them. Who asks for the frames of a gap sees its flash.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from mmrl.data.worlds.motion import GRID, SIDE, SIZE, Motion
from mmrl.data.worlds.questions import Question, asked_rarest
from mmrl.data.worlds.scenes import COLORS, SHAPES
from mmrl.record import Prompt

FPS, FRAMES = 4, 24
GAPS = ((2, 6), (10, 14), (18, 22))
"""First and last frame of each flash: half a second after one looked-at frame, half a second before the next."""


class Flashes(Motion):
    """`root` holds the clips; each question names the seconds of a gap and asks for the colour of its flash."""

    name = "flashes"
    offers = ("flash",)

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        free = [
            [x, y, x + SIDE, y + SIDE] for x in range(0, SIZE - SIDE + 1, GRID) for y in range(0, SIZE - SIDE + 1, GRID)
        ]
        objects = []
        for color, (first, last) in zip(rng.sample(list(COLORS), len(GAPS)), GAPS, strict=True):
            box = rng.choice(free)
            boxes = [box if first <= t <= last else None for t in range(FRAMES)]
            objects.append({"shape": rng.choice(SHAPES), "color": color, "boxes": boxes})
        asked = rng.randrange(len(GAPS))
        return {
            "size": SIZE, "fps": FPS, "frames": FRAMES, "background": "black", "objects": objects,
            "skill": "flash", "asked": asked,
        }  # fmt: skip

    def held_out(self, scene: dict[str, Any], asked: Counter[Any]) -> dict[str, Any]:
        return asked_rarest(scene, {gap: each["color"] for gap, each in enumerate(scene["objects"])}, asked)

    def ask(self, scene: dict[str, Any]) -> Question:
        start, end = seconds_of(scene["asked"])
        text = f"Which color appears between {start} and {end} seconds?"
        return Question(text, scene["objects"][scene["asked"]]["color"], "exact", "flash")

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        """With the column `span`: the seconds whose frames show the answer, which recipe `dynframe_turns` reads."""
        return super().prompt(scene, id, columns | {"span": list(seconds_of(scene["asked"]))})


def seconds_of(gap: int) -> tuple[float, float]:
    """Start and end of a gap's flash."""
    first, last = GAPS[gap]
    return first / FPS, last / FPS
