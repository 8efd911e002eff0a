"""Pictures with an instruction that changes one thing, for generators that edit, with the picture that follows.

    level 1   one object       "make the red circle blue", "move the red circle to the left", "remove the red circle"
    level 2   two objects, one of which is to be changed
    level 3   three objects
    level 4+  three or four objects, on a gray or white background

Objects stand in the cells of a grid, 2 x 2 up to level 2 and 3 x 3 above. Colours are distinct, so an instruction
means one object. A moved object keeps its row (left, right) or column (top, bottom) and goes to the edge. A scene is
what a verifier needs: `{"size", "background", "objects": [{"shape", "color", "box"}], "asked": {"edit", "color",
"shape", "to"}}`; `after` gives the objects as they should be.
"""

from __future__ import annotations

import random
from typing import Any

from mmrl.data.worlds.questions import World
from mmrl.data.worlds.scenes import COLORS, SHAPES, draw_objects
from mmrl.errors import DataError, unknown
from mmrl.record import Prompt

CELL, SIDE = 8, 7
CELLS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
"""In a row, by level."""
EDITS = ("recolor", "move", "remove")
PLACES = {"left": "to the left", "right": "to the right", "top": "to the top", "bottom": "to the bottom"}
COUNTS = {1: (1,), 2: (2,), 3: (3,), 4: (3,), 5: (3, 4)}


class Edits(World):
    name = "edits"
    offers = EDITS

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        background = rng.choice(("gray", "white")) if level > 3 else "black"
        skill = rng.choice(self.skills)
        while True:
            count, wide = rng.choice(COUNTS[level]), CELLS[level]
            cells = rng.sample([(x, y) for x in range(wide) for y in range(wide)], count)
            objects = [
                {"shape": rng.choice(SHAPES), "color": color, "box": _box(*cell)}
                for color, cell in zip(rng.sample(list(COLORS), count), cells, strict=True)
            ]
            scene = {"size": CELL * wide, "background": background, "objects": objects}
            if asked := _asked(rng, skill, scene):
                return scene | {"asked": asked, "skill": skill}

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        text = instruction(scene["asked"])
        content = [{"type": "image", "role": "condition"}, {"type": "text", "text": text}]
        columns = columns | {"scene": scene, "caption": text, "solution": text, "task": "edit", "skill": scene["skill"]}
        return Prompt(
            id=id, messages=[{"role": "user", "content": content}], images=[self.render(scene)], columns=columns
        )

    def render(self, scene: dict[str, Any], objects: list[dict[str, Any]] | None = None) -> Any:
        """The picture before the edit, or with these objects."""
        return draw_objects(scene["size"], scene["background"], scene["objects"] if objects is None else objects)


def instruction(asked: dict[str, Any]) -> str:
    what = f"the {asked['color']} {asked['shape']}"
    if asked["edit"] == "recolor":
        return f"make {what} {asked['to']}"
    return f"remove {what}" if asked["edit"] == "remove" else f"move {what} {PLACES[asked['to']]}"


def after(scene: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects as they should be once the edit is made."""
    asked = scene["asked"]
    objects = [dict(each) for each in scene["objects"]]
    target = next(each for each in objects if each["color"] == asked["color"])
    if asked["edit"] == "recolor":
        target["color"] = asked["to"]
    elif asked["edit"] == "move":
        target["box"] = moved(target["box"], asked["to"], scene["size"])
    elif asked["edit"] == "remove":
        objects.remove(target)
    else:
        raise DataError(unknown("edit", asked["edit"], EDITS))
    return objects


def moved(box: list[int], to: str, size: int) -> list[int]:
    """`box` at the edge `to` of its row or column, in a picture of `size` pixels."""
    column, row = box[0] // CELL, box[1] // CELL
    edge = 0 if to in ("left", "top") else size // CELL - 1
    return _box(edge, row) if to in ("left", "right") else _box(column, edge)


def _asked(rng: random.Random, skill: str, scene: dict[str, Any]) -> dict[str, Any] | None:
    """An edit of one of the objects; None where there is no free place to move it to."""
    objects = scene["objects"]
    target = rng.choice(objects)
    asked = {"edit": skill, "color": target["color"], "shape": target["shape"]}
    if skill == "recolor":
        taken = {each["color"] for each in objects}
        asked["to"] = rng.choice([color for color in COLORS if color not in taken])
    elif skill == "move":
        boxes = [each["box"] for each in objects]
        free = [to for to in PLACES if moved(target["box"], to, scene["size"]) not in boxes]
        if not free:
            return None
        asked["to"] = rng.choice(free)
    return asked


def _box(column: int, row: int) -> list[int]:
    return [column * CELL, row * CELL, column * CELL + SIDE, row * CELL + SIDE]
