"""Compositional verifier: are the asked objects in the picture, by colour, shape, count and position together?

The column `scene` says what must be there, and every pixel is looked at; there is no model to please:

    {"objects": [{"shape": "circle", "color": "red", "count": 2, "position": "left"}], "background": "black"}

1. Each pixel takes the nearest named colour, or none if that is further than 100 (of 442) in RGB.
2. Connected regions of one colour are objects, if a 2 x 2 block fits in and they cover 1 to 35 % of the picture.
   Larger ones count as an extra thing without colour or shape: filling the picture, or half of it, earns nothing.
3. A region has the shape whose outline, drawn into its bounding box, overlaps it most (IoU at least .7).
   Below 6 pixels a circle and a cross are the same pixels.
4. Found and asked objects are matched one to one, and each sub-score is an F1, so that extras cost as much as
   gaps. All are bound to colour: a blue circle is nothing where a red one was asked.

A picture without a plain background (25 % of its pixels) scores 0; the wrong background halves the score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrl.errors import RewardError, unknown
from mmrl.rewards.registry import reward

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (20, 160, 40),
    "blue": (30, 60, 230),
    "yellow": (245, 215, 20),
    "purple": (140, 30, 170),
    "orange": (250, 130, 10),
    "cyan": (20, 200, 220),
    "pink": (250, 120, 190),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
}
NAMES = tuple(PALETTE)
NEUTRAL = ("black", "gray", "white")
SHAPES = ("circle", "square", "triangle", "cross")
POSITIONS = ("left", "right", "top", "bottom", "center", "top left", "top right", "bottom left", "bottom right")
FARTHEST = 100.0  # RGB distance at which a pixel stops having a colour
LEAST_SHARE, MOST_SHARE = 0.01, 0.35  # of the picture, for one object
PLAIN_SHARE = 0.25  # of the picture, for its background
LEAST_SHAPE_IOU = 0.7
CIRCLES, ARMS = (0.8, 1.0), (0.34, 0.45)  # squared radii and half widths of arms, as small pictures round them
MIDDLE = 0.05  # half width of the band around the middle line that is neither left nor right
SUBSCORES = ("color", "shape", "count", "position")


@dataclass(frozen=True)
class Asked:
    """One object that should be there."""

    color: str
    shape: str
    position: str | None


@dataclass(frozen=True)
class Found:
    """One region of the picture. x, y: its centre as shares of width and height."""

    color: str | None
    shape: str | None
    x: float
    y: float


def check_scene(row: Mapping[str, Any], **_: Any) -> None:
    """Raise RewardError if the column `scene` asks for something this verifier cannot see."""
    try:
        asked_objects(row.get("scene"))
    except RewardError as error:
        raise RewardError(str(error), column="scene") from None


def asked_objects(scene: Any) -> list[Asked]:
    """Every object of a scene, once per count. RewardError names the entry that makes no sense."""
    objects = scene.get("objects") if isinstance(scene, Mapping) else None
    if not isinstance(objects, Sequence) or not objects or not all(isinstance(each, Mapping) for each in objects):
        raise RewardError(f"scene {scene!r} has no objects; expected {{'objects': [{{'shape', 'color', ...}}]}}")
    _known("background", scene.get("background"), (None, *NAMES))
    asked = []
    for each in objects:
        _known("shape", each.get("shape"), SHAPES)
        _known("color", each.get("color"), [name for name in NAMES if name not in NEUTRAL])
        _known("position", each.get("position"), (None, *POSITIONS))
        count = each.get("count", 1)
        if not isinstance(count, int) or count < 1:
            raise RewardError(f"scene: count {count!r} of {each!r}; expected a whole number from 1")
        asked += [Asked(each["color"], each["shape"], each.get("position"))] * count
    return asked


def _known(kind: str, value: Any, valid: Sequence[str | None]) -> None:
    if value not in valid:
        raise RewardError(f"scene: {unknown(kind, value, [name for name in valid if name])}")


def name_colors(image: Any) -> np.ndarray:
    """(H, W) index into NAMES of the nearest colour of each pixel, -1 where none is near."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    palette = np.array(list(PALETTE.values()), dtype=np.float32)
    distances = np.linalg.norm(pixels - palette[:, None, None], axis=-1)
    return np.where(distances.min(0) <= FARTHEST, distances.argmin(0), -1)


def background_of(labels: np.ndarray, wanted: str | None) -> str | None:
    """The colour of the plain background: the wanted one if it covers enough, else the commonest neutral that does."""
    shares = {name: float((labels == NAMES.index(name)).mean()) for name in {*NEUTRAL, wanted} - {None}}
    if wanted and shares[wanted] >= PLAIN_SHARE:
        return wanted
    commonest = max(NEUTRAL, key=shares.__getitem__)
    return commonest if shares[commonest] >= PLAIN_SHARE else None


def find_objects(labels: np.ndarray, background: str) -> list[Found]:
    """The coloured regions of a picture."""
    from scipy import ndimage

    found = []
    for index, color in enumerate(NAMES):
        if color == background or color in NEUTRAL:
            continue
        mask = labels == index
        core = ndimage.binary_opening(mask, np.ones((2, 2), dtype=bool))
        regions, _ = ndimage.label(mask)
        for number in np.unique(regions[core]):
            region = regions == number
            if region.mean() >= LEAST_SHARE:
                found.append(_describe(region, color))
    return found


def _describe(region: np.ndarray, color: str) -> Found:
    rows, columns = np.nonzero(region)
    x, y = (columns.mean() + 0.5) / region.shape[1], (rows.mean() + 0.5) / region.shape[0]
    if region.mean() > MOST_SHARE:
        return Found(None, None, x, y)
    box = region[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return Found(color, classify(box), x, y)


def classify(mask: np.ndarray) -> str | None:
    """The shape of a region cut to its bounding box (h, w); None if it is like none of them."""
    height, width = mask.shape
    if max(height, width) > 1.5 * min(height, width):
        return None
    ious = {
        shape: max((mask & outline).sum() / (mask | outline).sum() for outline in outlines(shape, height, width))
        for shape in SHAPES
    }
    best = max(SHAPES, key=ious.__getitem__)
    return best if ious[best] >= LEAST_SHAPE_IOU else None


def outlines(shape: str, height: int, width: int) -> list[np.ndarray]:
    """(h, w) masks of a shape that touches all four sides; a triangle may point in four directions."""
    y = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    x = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    if shape == "square":
        return [np.ones((height, width), dtype=bool)]
    if shape == "circle":
        return [x**2 + y**2 <= square for square in CIRCLES]
    if shape == "cross":
        return [(np.abs(x) <= arm) | (np.abs(y) <= arm) for arm in ARMS]
    half = 1 / min(height, width)  # edges are drawn through the pixels they touch
    return [np.abs(across) <= (1 + sign * along) / 2 + half for across, along in ((x, y), (y, x)) for sign in (1, -1)]


def lies(found: Found, position: str | None) -> bool:
    """Whether the centre of an object is where it should be; None: anywhere."""
    if position is None:
        return True
    if position == "center":
        return all(1 / 3 < each < 2 / 3 for each in (found.x, found.y))
    low, high = 0.5 - MIDDLE, 0.5 + MIDDLE
    sides = {"left": found.x < low, "right": found.x > high, "top": found.y < low, "bottom": found.y > high}
    return all(sides[word] for word in position.split())


def _pairs(fits: list[list[bool]]) -> int:
    """How many asked and found objects can be matched one to one."""
    from scipy.optimize import linear_sum_assignment

    table = np.array(fits)
    return int(table[linear_sum_assignment(table, maximize=True)].sum())


def verify(image: Any, scene: Mapping[str, Any]) -> dict[str, float]:
    """`color`, `shape`, `count`, `position` in [0, 1], `overall` their mean, and `success`: all of it is right."""
    asked = asked_objects(scene)
    labels = name_colors(image)
    wanted = scene.get("background")
    background = background_of(labels, wanted)
    found = find_objects(labels, background) if background else []
    if not found:
        return dict.fromkeys((*SUBSCORES, "overall", "success"), 0.0)
    factor = 1.0 if wanted in (None, background) else 0.5

    def matches(test: Callable[[Asked, Found], bool]) -> int:
        return _pairs([[a.color == f.color and test(a, f) for f in found] for a in asked])

    total = len(asked) + len(found)
    scores = {
        "color": 2 * matches(lambda a, f: True) / total,
        "shape": 2 * matches(lambda a, f: a.shape == f.shape) / total,
        "count": _count_score(asked, found),
        "position": 2 * matches(lambda a, f: lies(f, a.position)) / total,
    }
    scores = {name: factor * score for name, score in scores.items()}
    right = matches(lambda a, f: a.shape == f.shape and lies(f, a.position))
    scores["overall"] = sum(scores.values()) / len(SUBSCORES)
    scores["success"] = float(2 * right == total and factor == 1)
    return scores


def _count_score(asked: Sequence[Asked], found: Sequence[Found]) -> float:
    """1 - relative error of the count, at least 0, averaged over the asked colours."""
    scores = []
    for color in {each.color for each in asked}:
        want = sum(each.color == color for each in asked)
        have = sum(each.color == color for each in found)
        scores.append(max(0.0, 1 - abs(have - want) / want))
    return sum(scores) / len(scores)


@reward("compositional", success=True, check=check_scene)
def compositional(completions, scene) -> list[dict[str, float]]:
    """Mean of color, shape, count and position, verified pixel by pixel against `scene`; each is reported, too."""
    return [verify(image, each) for image, each in zip(completions, scene, strict=True)]
