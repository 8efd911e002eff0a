"""Captions of which object moves where, for generators of video, with the clips they describe.

    level 1   "red circle moves left"
    level 2   "red circle moves left, white background", or it stays; a black background is not named
    level 3   "red circle moves left, blue square stays", or it moves, the same way or back
    level 4+  two objects, on a gray or white background

Captions are short at first, so that a tiny generator can read them: level 1 has 45 held-out scenes and level 2 has 163.
A scene is what a verifier needs: `{"size", "frames", "background", "objects": [{"shape", "color", "motion"}]}`.
`render` draws one of the clips that satisfy it: objects cross the picture in two lanes that never meet.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from mmrl.data.worlds.questions import World
from mmrl.data.worlds.scenes import BACKGROUNDS, COLORS, SHAPES, draw_objects
from mmrl.record import Prompt

SIZE, SIDE, FRAMES = 16, 6, 5
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STAYS = "stays"
_BEHIND = {1: ("black",), 2: tuple(BACKGROUNDS), 3: ("black",), 4: ("gray", "white"), 5: ("gray", "white")}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


class Moves(World):
    name = "moves"
    sizes: ClassVar[dict[str, int]] = {"train": 4096, "test": 160}

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        way = rng.choice(list(WAYS) if level != 2 else [*WAYS, STAYS])
        ways = [way]
        if level > 2:
            ways.append(rng.choice((way, OPPOSITE[way], STAYS)))
        colors = rng.sample(list(COLORS), len(ways))
        objects = [
            {"shape": rng.choice(SHAPES), "color": color, "motion": way}
            for color, way in zip(colors, ways, strict=True)
        ]
        background = rng.choice(_BEHIND[level])
        return {"size": SIZE, "frames": FRAMES, "background": background, "objects": objects}

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        text = caption(scene)
        columns = columns | {"scene": scene, "caption": text, "solution": text, "task": "moves"}
        return Prompt(id=id, messages=[{"role": "user", "content": text}], columns=columns)

    def render(self, scene: dict[str, Any], rng: random.Random | None = None) -> list[Any]:
        """The frames of one clip of this scene, as PIL images; lanes and resting places are drawn from `rng`."""
        rng = rng or random.Random(0)
        objects = scene["objects"]
        across = any(each["motion"] in ("up", "down") for each in objects)
        lanes = rng.sample((0, scene["size"] - SIDE), len(objects))
        rests = [rng.randrange(0, scene["size"] - SIDE + 1) for _ in objects]
        frames = []
        for t in range(scene["frames"]):
            shown = [
                each | {"box": _box(each["motion"], lane, rest, across, t, scene)}
                for each, lane, rest in zip(objects, lanes, rests, strict=True)
            ]
            frames.append(draw_objects(scene["size"], scene["background"], shown))
        return frames


def caption(scene: dict[str, Any]) -> str:
    said = []
    for each in scene["objects"]:
        does = STAYS if each["motion"] == STAYS else f"moves {each['motion']}"
        said.append(f"{each['color']} {each['shape']} {does}")
    background = "" if scene["background"] == "black" else f", {scene['background']} background"
    return ", ".join(said) + background


def _box(motion: str, lane: int, rest: int, across: bool, t: int, scene: dict[str, Any]) -> list[int]:
    """Of an object at frame `t`: a fixed place in its lane, or on its way from one side to the other."""
    free = scene["size"] - SIDE
    along = rest
    if motion != STAYS:
        travelled = free * t // (scene["frames"] - 1)
        along = travelled if sum(WAYS[motion]) > 0 else free - travelled
    x, y = (lane, along) if across else (along, lane)
    return [x, y, x + SIDE, y + SIDE]
