"""Is everything outside the edit as it was? Pixels against the picture the edit starts from; no weights.

    rewards: [{name: preservation}]                            columns: `edit_region`, where the edit may be

`reference` is the row's condition image. `edit_region` is a box [left, top, right, bottom] in pixels of the reference,
a list of boxes, or a picture that is white where the edit may be. A pixel is worth 1 where it is as it was, down to 0
at a difference of `tolerance` of full brightness in one channel; the reward is the mean over all pixels outside.
Outputs of another size are compared at the reference's. An output that copies the reference is perfect: train it
together with a reward that wants the edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.errors import RewardError
from mmrl.rewards.registry import reward

TOLERANCE = 0.25


def check_region(row: Mapping[str, Any], **_: Any) -> None:
    """Raise RewardError if the column `edit_region` is no box, boxes or picture."""
    boxes_of(row.get("edit_region"))


def boxes_of(region: Any) -> list[list[float]] | None:
    """The boxes of a region; None for a picture, which is read with its reference."""
    if hasattr(region, "convert"):
        return None
    boxes = [region] if isinstance(region, Sequence) and region and not isinstance(region[0], Sequence) else region
    good = isinstance(boxes, Sequence) and not isinstance(boxes, str) and len(boxes) > 0
    if not good or not all(_is_box(box) for box in boxes):
        raise RewardError(
            f"edit_region {region!r}; expected [left, top, right, bottom], a list of such boxes, or a picture that is "
            "white where the edit may be", column="edit_region",
        )  # fmt: skip
    return [list(box) for box in boxes]


def _is_box(box: Any) -> bool:
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 4:
        return False
    numbers = all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in box)
    return numbers and box[0] < box[2] and box[1] < box[3]


def outside(region: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) True where nothing may change."""
    width, height = size
    boxes = boxes_of(region)
    if boxes is None:
        kept = np.asarray(region.convert("L").resize(size)) < 128
    else:
        kept = np.ones((height, width), dtype=bool)
        for left, top, right, bottom in boxes:
            kept[max(0, int(top)) : max(0, round(bottom)), max(0, int(left)) : max(0, round(right))] = False
    if not kept.any():
        raise RewardError(f"edit_region covers the whole picture of {width} x {height}: nothing is left to preserve")
    return kept


def preserved(image: Any, reference: Any, region: Any, tolerance: float = TOLERANCE) -> float:
    """0 to 1: how much of the picture outside the region is as it was."""
    if not hasattr(image, "convert"):
        raise RewardError(f"preservation reads PIL images, got a {type(image).__name__}")
    before = np.asarray(reference.convert("RGB"), dtype=np.float32) / 255
    after = np.asarray(image.convert("RGB").resize(reference.size), dtype=np.float32) / 255
    worth = np.maximum(0.0, 1 - np.abs(after - before).max(-1) / tolerance)
    return float(worth[outside(region, reference.size)].mean())


@reward("preservation", check=check_region)
def preservation(completions, reference, edit_region, *, tolerance: float = TOLERANCE) -> list[float]:
    """0 to 1: how much of the picture outside the column `edit_region` is as in the condition image."""
    if tolerance <= 0:
        raise RewardError(f"preservation: tolerance={tolerance:g}; expected a share of full brightness above 0")
    scores = []
    for image, given, region in zip(completions, reference, edit_region, strict=True):
        if len(given) != 1:
            raise RewardError(f"preservation compares with one condition image; the row has {len(given)}")
        scores.append(preserved(image, given[0], region, tolerance))
    return scores
