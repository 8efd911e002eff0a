"""Which object moves where: a verifier of short clips, pixel by pixel, with no model to please.

The column `scene` says what must be seen; objects have different colours, by which they are followed:

    {"objects": [{"shape": "circle", "color": "red", "motion": "left"},
                 {"shape": "square", "color": "blue", "motion": "stays"}], "background": "black"}

Frames are read as `mmrl.rewards.image` reads pictures. `color` and `shape` are an F1 over asked and found objects of
a frame, averaged over frames, so that extras cost as much as gaps. `motion` is, for each object,

    the share of steps from frame to frame that go the asked way, times how far it came, up to a quarter of the picture
    (which stays: the share of steps in which it stood still, if it ends where it began)

A step in which the object is not seen, or seen twice, goes no way. A jump back costs its step, so trembling earns
nothing. Frames on the wrong background count half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.image import Found, asked_objects, background_of, find_objects, name_colors
from mmrl.rewards.registry import reward

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STAYS = "stays"
FAR = 0.25  # of the picture: a movement worth the whole score
LEAST = 0.02  # of the picture: a step that is a movement
STILL = 0.05  # of the picture: less is standing still
SUBSCORES = ("color", "shape", "motion")


def check_moves(row: Mapping[str, Any], **_: Any) -> None:
    """Raise RewardError if the column `scene` asks for something this verifier cannot see."""
    try:
        asked_moves(row.get("scene"))
    except RewardError as error:
        raise RewardError(str(error), column="scene") from None


def asked_moves(scene: Any) -> list[dict[str, Any]]:
    """The objects of a scene. RewardError names the entry that makes no sense."""
    asked_objects(scene)
    objects = list(scene["objects"])
    colors = [each["color"] for each in objects]
    if len(set(colors)) < len(colors):
        raise RewardError(f"scene: two objects are {colors[0]}; objects of a clip are followed by their colour")
    for each in objects:
        if each.get("motion") not in (*WAYS, STAYS):
            raise RewardError(f"scene: {unknown('motion', each.get('motion'), (*WAYS, STAYS))}")
    return objects


def verify(frames: Any, scene: Mapping[str, Any]) -> dict[str, float]:
    """`color`, `shape`, `motion` in [0, 1], `overall` their mean, and `success`: all of it right in every frame."""
    asked, wanted = asked_moves(scene), scene.get("background")
    if not isinstance(frames, list | tuple) or len(frames) < 2:
        raise RewardError(f"choreography reads clips, lists of at least two images; got {_told(frames)}")
    seen, factor = [], 0.0
    for frame in frames:
        labels = name_colors(frame)
        background = background_of(labels, wanted)
        seen.append(find_objects(labels, background) if background else [])
        factor += (1.0 if wanted in (None, background) else 0.5) / len(frames)
    scores = {
        "color": sum(_f1(asked, found, shaped=False) for found in seen) / len(seen),
        "shape": sum(_f1(asked, found, shaped=True) for found in seen) / len(seen),
        "motion": sum(moved(track(seen, each["color"]), each["motion"]) for each in asked) / len(asked),
    }
    scores = {name: factor * score for name, score in scores.items()}
    scores["overall"] = sum(scores.values()) / len(SUBSCORES)
    scores["success"] = float(min(scores[name] for name in SUBSCORES) > 1 - 1e-9)
    return scores


def _f1(asked: Sequence[Mapping[str, Any]], found: Sequence[Found], shaped: bool) -> float:
    hits = sum(any(f.color == a["color"] and (not shaped or f.shape == a["shape"]) for f in found) for a in asked)
    return 2 * hits / (len(asked) + len(found))


def track(seen: Sequence[Sequence[Found]], color: str) -> list[tuple[float, float] | None]:
    """Where the one object of a colour is in each frame, as shares of width and height; None where it is not one."""
    own = [[f for f in found if f.color == color] for found in seen]
    return [(one[0].x, one[0].y) if len(one) == 1 else None for one in own]


def moved(places: Sequence[tuple[float, float] | None], motion: str) -> float:
    """0 to 1: how well a track goes the asked way."""
    steps = [_step(a, b) for a, b in pairwise(places)]
    seen = [place for place in places if place is not None]
    if not seen:
        return 0.0
    dx, dy = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
    if motion == STAYS:
        right = sum(step is not None and max(map(abs, step)) <= STILL for step in steps)
        return right / len(steps) * (max(abs(dx), abs(dy)) <= STILL)
    way = WAYS[motion]
    right = sum(step is not None and _goes(step, way) for step in steps)
    came = way[0] * dx + way[1] * dy
    return right / len(steps) * min(1.0, max(0.0, came / FAR))


def _step(a: tuple[float, float] | None, b: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if a is None or b is None else (b[0] - a[0], b[1] - a[1])


def _goes(step: tuple[float, float], way: tuple[int, int]) -> bool:
    along = way[0] * step[0] + way[1] * step[1]
    across = abs(way[1] * step[0]) + abs(way[0] * step[1])
    return along >= LEAST and across <= along


def _told(frames: Any) -> str:
    return f"{len(frames)} image(s)" if isinstance(frames, list | tuple) else f"a {type(frames).__name__}"


@reward("choreography", success=True, check=check_moves)
def choreography(completions, scene) -> list[dict[str, float]]:
    """Mean of color, shape and motion of a clip, verified pixel by pixel against `scene`; each is reported, too."""
    return [verify(frames, each) for frames, each in zip(completions, scene, strict=True)]
