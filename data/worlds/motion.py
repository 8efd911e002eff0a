"""Short clips of moving, appearing and vanishing shapes, written as real H.264 files.

Questions: which way something moves, which colour appears first or last, when something is visible (an
interval in seconds), and how many things there are. Events fall on half seconds. Difficulty adds length,
objects and directions. A file is written when its prompt is first asked for, under the hash of its content.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mmrl.data.cache import default_root
from mmrl.data.worlds.questions import Question, World, question_columns
from mmrl.data.worlds.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    draw_objects,
    place,
    plural,
    scene_hash,
)
from mmrl.media import Clip, write_video
from mmrl.record import Prompt

SIZE, GRID, SIDE = 64, 8, 16
FPS = 4
FRAMES = {1: 8, 2: 8, 3: 12, 4: 16, 5: 16}  # by difficulty: 2 to 4 seconds
OBJECTS = {1: 1, 2: 2, 3: 3, 4: 3, 5: 4}  # in clips about a movement or an interval
HALF_SECOND = FPS // 2
SKILLS = ("direction", "order", "interval", "count")
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}


class Motion(World):
    """`root` holds the clips; the default is a folder in the user's cache."""

    name = "motion"
    offers: tuple[str, ...] = SKILLS

    def __init__(self, root: str | Path | None = None, skills: tuple[str, ...] = ()) -> None:
        super().__init__(skills)
        self.root = Path(root) if root is not None else default_root() / "worlds" / self.name

    @classmethod
    def open(cls, root: str | Path | None, skills: tuple[str, ...]) -> Motion:
        return cls(root, skills)

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        skill = rng.choice(self.skills)
        draw = {"direction": _moving, "order": _appearing, "interval": _visible, "count": _counted}[skill]
        background = rng.choice(list(BACKGROUNDS)) if level > 2 else "black"
        scene = {"size": SIZE, "fps": FPS, "frames": FRAMES[level], "background": background}
        return scene | draw(rng, level) | {"skill": skill}

    def ask(self, scene: dict[str, Any]) -> Question:
        objects, skill = scene["objects"], scene["skill"]
        target = objects[0]
        if skill == "direction":
            text = f"Which way does the {target['color']} {target['shape']} move?"
            return Question(text, direction_of(target["boxes"]), "exact", skill)
        if skill == "order":
            text = f"Which color appears {scene['asked']}?"
            return Question(text, target["color"], "exact", skill)
        if skill == "count":
            count = sum(each["shape"] == target["shape"] for each in objects)
            return Question(f"How many {plural(target['shape'])} appear?", str(count), "numeric", skill)
        start, end = visible_seconds(target["boxes"], scene["fps"])
        text = f"When is the {target['color']} {target['shape']} visible?"
        return Question(text, f"{start:.1f} to {end:.1f}", "temporal", skill)

    def render(self, scene: dict[str, Any]) -> list[Any]:
        """The frames of a clip, as PIL images; the object asked about is never covered."""
        frames = []
        for t in range(scene["frames"]):
            shown = [each | {"box": each["boxes"][t]} for each in reversed(scene["objects"]) if each["boxes"][t]]
            frames.append(draw_objects(scene["size"], scene["background"], shown))
        return frames

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        question = self.ask(scene)
        content = [{"type": "video"}, {"type": "text", "text": question.text}]
        return Prompt(
            id=id,
            messages=[{"role": "user", "content": content}],
            videos=[Clip(self.file(scene))],
            columns=columns | question_columns(question),
        )

    def file(self, scene: dict[str, Any]) -> Path:
        """The clip of this scene, written now if it is not there yet."""
        path = self.root / f"{scene_hash(scene)[:32]}.mp4"
        if not path.exists():
            write_video(path, self.render(scene), scene["fps"])
        return path


def direction_of(boxes: list[Any]) -> str:
    """The name of the way from the first box to the last."""
    (x0, y0), (x1, y1) = boxes[0][:2], boxes[-1][:2]
    signs = ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0))
    return next(name for name, vector in DIRECTIONS.items() if vector == signs)


def visible_seconds(boxes: list[Any], fps: int) -> tuple[float, float]:
    """First moment an object is on screen, and the moment it has left."""
    shown = [t for t, box in enumerate(boxes) if box]
    return shown[0] / fps, (shown[-1] + 1) / fps


def _colored_shapes(rng: random.Random, count: int, level: int) -> list[dict[str, Any]]:
    """`count` objects of different colours."""
    colors = rng.sample(list(COLORS)[: 3 + level], count)
    return [{"shape": rng.choice(SHAPES), "color": color} for color in colors]


def _standing(rng: random.Random, count: int) -> list[list[int]]:
    return place(rng, SIZE, [SIDE] * count, GRID)


def _moving(rng: random.Random, level: int) -> dict[str, Any]:
    """One object crosses the picture; from level 2 others stand still, from 3 one of them moves too."""
    frames = FRAMES[level]
    objects = _colored_shapes(rng, OBJECTS[level], level)
    ways = list(DIRECTIONS)[: 4 if level < 4 else 8]
    objects[0]["boxes"] = _path(rng, frames, rng.choice(ways))
    for number, each in enumerate(objects[1:], start=1):
        if number == 1 and level > 2:
            each["boxes"] = _path(rng, frames, rng.choice(ways))
        else:
            each["boxes"] = [_standing(rng, 1)[0]] * frames
    return {"objects": objects}


def _path(rng: random.Random, frames: int, way: str) -> list[list[int]]:
    """Boxes of a straight movement from one side to the other, over the whole clip."""
    free = SIZE - SIDE
    start = []
    for step in DIRECTIONS[way]:
        start.append({1: 0, -1: free, 0: rng.randrange(0, free + 1, GRID)}[step])
    path = []
    for t in range(frames):
        travelled = free * t // (frames - 1)
        x, y = (edge + step * travelled for edge, step in zip(start, DIRECTIONS[way], strict=True))
        path.append([x, y, x + SIDE, y + SIDE])
    return path


def _appearing(rng: random.Random, level: int) -> dict[str, Any]:
    """Two objects, three from level 3, appear at different half seconds and stay."""
    frames = FRAMES[level]
    objects = _colored_shapes(rng, 2 if level < 3 else 3, level)
    starts = sorted(rng.sample(range(0, frames, HALF_SECOND), len(objects)))
    asked = rng.choice(("first", "last")) if level > 1 else "first"
    if asked == "last":
        starts.reverse()
    for each, start, box in zip(objects, starts, _standing(rng, len(objects)), strict=True):
        each["boxes"] = [None] * start + [box] * (frames - start)
    return {"objects": objects, "asked": asked}


def _visible(rng: random.Random, level: int) -> dict[str, Any]:
    """One object is on screen for a while; others, from level 2, all the time or for another while."""
    frames = FRAMES[level]
    objects = _colored_shapes(rng, OBJECTS[level], level)
    for number, (each, box) in enumerate(zip(objects, _standing(rng, len(objects)), strict=True)):
        start, end = 0, frames
        while number <= level // 3 and (start, end) == (0, frames):
            start, end = sorted(rng.sample(range(0, frames + 1, HALF_SECOND), 2))
        each["boxes"] = [box if start <= t < end else None for t in range(frames)]
    return {"objects": objects}


def _counted(rng: random.Random, level: int) -> dict[str, Any]:
    """Objects of one shape, and from level 3 one of another, that come at different times."""
    frames = FRAMES[level]
    count = rng.randint(1, 2 + min(level, 4))
    shape, other = rng.sample(SHAPES, 2)
    kinds = [shape] * count + [other] * (level > 2)
    objects = []
    for kind, box in zip(kinds, _standing(rng, len(kinds)), strict=True):
        start = rng.randrange(0, frames, HALF_SECOND)
        color = rng.choice(list(COLORS)[: 3 + level])
        objects.append({"shape": kind, "color": color, "boxes": [None] * start + [box] * (frames - start)})
    return {"objects": objects}
