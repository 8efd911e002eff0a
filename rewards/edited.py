"""Was the one thing changed, and nothing else? A verifier of edited pictures, with no model to please.

The column `scene` holds the picture before, object by object, and what was asked:

    {"objects": [{"shape": "circle", "color": "red", "box": [0, 0, 7, 7]}, ...], "background": "black", "size": 24,
     "asked": {"edit": "recolor" | "move" | "remove", "color": "red", "shape": "circle", "to": "blue" | "left"}}

Objects have different colours. The picture is read as `mmrl.rewards.image` reads it; an object is in its place if its
centre lies within a quarter of its box from the centre of the box. A moved one keeps its row or column and goes to the
edge.

    edit   remove: 1 if nothing of the object is seen. recolor, move: half for the asked colour in the asked place with
           the old one gone, half for the shape, too
    kept   F1 over the other objects, each by colour, shape and place; whatever else is seen is an extra

The reward is edit x kept: doing nothing, and wiping everything, are both worth 0. The wrong background halves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.image import NAMES, NEUTRAL, Found, asked_objects, background_of, find_objects, name_colors
from mmrl.rewards.registry import reward

EDITS = ("recolor", "move", "remove")
PLACES = ("left", "right", "top", "bottom")
NEAR = 0.25  # of a box, from its centre


@dataclass(frozen=True)
class Thing:
    """An object that should be there; box in shares of the picture."""

    color: str
    shape: str
    box: tuple[float, float, float, float]

    def at(self, found: Found) -> bool:
        left, top, right, bottom = self.box
        x, y = (left + right) / 2, (top + bottom) / 2
        return abs(found.x - x) <= NEAR * (right - left) and abs(found.y - y) <= NEAR * (bottom - top)

    def same(self, found: Found) -> bool:
        return found.color == self.color and found.shape == self.shape and self.at(found)


def check_edit(row: Mapping[str, Any], **_: Any) -> None:
    """Raise RewardError if the column `scene` asks for something this verifier cannot see."""
    try:
        expected(row.get("scene"))
    except RewardError as error:
        raise RewardError(str(error), column="scene") from None


def expected(scene: Any) -> tuple[Thing, Thing | None, list[Thing]]:
    """The object to change, what it becomes (None: nothing), and the others. RewardError for a scene without sense."""
    asked_objects(scene)
    things = [_thing(each, scene.get("size")) for each in scene["objects"]]
    if len({thing.color for thing in things}) < len(things):
        raise RewardError("scene: two objects have one colour; an edit must mean one object")
    asked = scene.get("asked")
    if not isinstance(asked, Mapping) or asked.get("edit") not in EDITS:
        kind = asked.get("edit") if isinstance(asked, Mapping) else asked
        raise RewardError(f"scene: {unknown('edit', kind, EDITS)}")
    targets = [thing for thing in things if thing.color == asked.get("color")]
    if not targets:
        raise RewardError(f"scene: no object is {asked.get('color')!r}, the colour that `asked` names")
    others = [thing for thing in things if thing is not targets[0]]
    return targets[0], _becomes(targets[0], asked), others


def _thing(each: Mapping[str, Any], size: Any) -> Thing:
    box = each.get("box")
    if not isinstance(size, int) or not isinstance(box, Sequence) or len(box) != 4:
        raise RewardError(f"scene: size {size!r} and box {box!r}; expected pixels and [left, top, right, bottom]")
    left, top, right, bottom = (edge / size for edge in box)
    return Thing(each["color"], each["shape"], (left, top, right, bottom))


def _becomes(target: Thing, asked: Mapping[str, Any]) -> Thing | None:
    if asked["edit"] == "remove":
        return None
    to = asked.get("to")
    if asked["edit"] == "recolor":
        choices = [name for name in NAMES if name not in NEUTRAL]
        if to not in choices:
            raise RewardError(f"scene: {unknown('color', to, choices)}")
        return Thing(to, target.shape, target.box)
    if to not in PLACES:
        raise RewardError(f"scene: {unknown('place to move to', to, PLACES)}")
    left, top, right, bottom = target.box
    wide, high = right - left, bottom - top
    if to in ("left", "right"):
        left = 0.0 if to == "left" else 1 - wide
    else:
        top = 0.0 if to == "top" else 1 - high
    return Thing(target.color, target.shape, (left, top, left + wide, top + high))


def verify(image: Any, scene: Mapping[str, Any]) -> dict[str, float]:
    """`edit` and `kept` in [0, 1], `overall` their product, and `success`: both are 1 on the right background."""
    target, becomes, others = expected(scene)
    if not hasattr(image, "convert"):
        raise RewardError(f"edited reads PIL images, got a {type(image).__name__}")
    labels, wanted = name_colors(image), scene.get("background")
    background = background_of(labels, wanted)
    if background is None:
        return dict.fromkeys(("edit", "kept", "overall", "success"), 0.0)
    found = find_objects(labels, background)
    changed = [f for f in found if f.color in (target.color, becomes.color if becomes else None)]
    edit = _made(target, becomes, changed)
    rest = [f for f in found if f not in changed[:1]] if edit else found
    hits = sum(any(other.same(f) for f in rest) for other in others)
    kept = 2 * hits / (len(others) + len(rest)) if others or rest else 1.0
    factor = 1.0 if wanted in (None, background) else 0.5
    return {
        "edit": factor * edit,
        "kept": factor * kept,
        "overall": factor * edit * kept,
        "success": float(edit == 1 and kept == 1 and factor == 1),
    }


def _made(target: Thing, becomes: Thing | None, changed: Sequence[Found]) -> float:
    """How far the edit is made, from what is seen in the old and the new colour."""
    if becomes is None:
        return float(not changed)
    if len(changed) != 1 or changed[0].color != becomes.color or not becomes.at(changed[0]):
        return 0.0
    return 1.0 if changed[0].shape == becomes.shape else 0.5


@reward("edited", success=True, check=check_edit)
def edited(completions, scene) -> list[dict[str, float]]:
    """1 where the asked edit is made and everything else is as before, verified pixel by pixel against `scene`."""
    return [verify(image, each) for image, each in zip(completions, scene, strict=True)]
