"""A second verifier of `compositions`, for held-out scores: the nearest of all pictures the world can draw.

    rewards: [{name: mmrl.data.worlds.nearest:nearest_picture}]

`compositional` names pixels, finds regions and fits outlines; this one knows no regions and compares whole pictures,
so that what fools the one need not fool the other. Scenes of one group only (difficulty 1 and 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np

from mmrl.data.worlds.compositions import COUNTS, POSITIONS, SIDE, SIZE
from mmrl.data.worlds.scenes import BACKGROUNDS, COLORS, SHAPES, draw_objects
from mmrl.errors import DataError

PARTS = ("color", "shape", "count", "position", "background")
SAME = 1e-3
"""Pictures this near are one: an object in a corner is on two sides."""


@lru_cache(maxsize=1)
def pictures() -> tuple[np.ndarray, np.ndarray, list[tuple[Any, ...]]]:
    """(M, 3 H W) in [0, 1], their squared lengths (M,), and what each shows, in the order of PARTS."""
    drawn, shown = [], []
    for color, shape, count, position, background in product(COLORS, SHAPES, COUNTS, POSITIONS, BACKGROUNDS):
        for slots in combinations(range(3), count):
            objects = [{"shape": shape, "color": color, "box": _box(position, slot)} for slot in slots]
            drawn.append(np.asarray(draw_objects(SIZE, background, objects), dtype=np.float32).ravel() / 255)
            shown.append((color, shape, count, position, background))
    stacked = np.stack(drawn)
    return stacked, (stacked**2).sum(1), shown


def _box(position: str, along: int) -> list[int]:
    cell, edge = SIZE // 3, (0 if position in ("left", "top") else 2)
    column, row = (edge, along) if position in ("left", "right") else (along, edge)
    return [column * cell, row * cell, column * cell + SIDE, row * cell + SIDE]


def nearest_picture(completions: list[Any], scene: list[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Which share of colour, shape, count, position and background the nearest drawable picture has right."""
    templates, lengths, shown = pictures()
    pixels = np.stack([_pixels(image) for image in completions])
    distances = lengths[None] - 2 * pixels @ templates.T
    return [_compared(row, shown, each) for row, each in zip(distances, scene, strict=True)]


def _pixels(image: Any) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE)), dtype=np.float32).ravel() / 255


def _compared(distances: np.ndarray, shown: list[tuple[Any, ...]], scene: Mapping[str, Any]) -> dict[str, float]:
    if len(scene["objects"]) != 1:
        raise DataError(
            f"nearest_picture reads scenes of one group, got {len(scene['objects'])}; choose difficulty 1 or 2"
        )
    asked = tuple({**scene["objects"][0], "background": scene["background"]}[part] for part in PARTS)
    near = np.flatnonzero(distances <= distances.min() + SAME)
    best = max((shown[i] for i in near), key=lambda found: sum(a == b for a, b in zip(asked, found, strict=True)))
    right = {part: float(a == b) for part, a, b in zip(PARTS, asked, best, strict=True)}
    return right | {"overall": sum(right.values()) / len(PARTS), "success": float(asked == best)}
