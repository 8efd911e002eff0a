"""Numbers of a picture's own pixels, to try a training with before a model judges: no weights, nothing to load.

jpeg_compressibility, jpeg_incompressibility   minus, plus the kB of its JPEG file at quality 95 (DDPO, Black et al.
                                               2023, arXiv 2305.13301, and its code)
color_share                                    share of the picture in the colour that the column `color` names
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.image import NAMES, name_colors
from mmrl.rewards.registry import reward

QUALITY = 95


def check_color(row: Mapping[str, Any], **_: Any) -> None:
    """Raise RewardError if the column `color` names no colour of the palette."""
    if row.get("color") not in NAMES:
        raise RewardError(unknown("color", row.get("color"), NAMES), column="color")


def kilobytes(image: Any, name: str) -> float:
    """Of the picture as a JPEG file; 1 kB is 1000 bytes, as in DDPO's code."""
    buffer = io.BytesIO()
    _picture(image, name).save(buffer, format="JPEG", quality=QUALITY)
    return len(buffer.getvalue()) / 1000


def _picture(image: Any, name: str) -> Any:
    if not hasattr(image, "convert"):
        raise RewardError(f"{name} reads PIL images, got a {type(image).__name__}")
    return image.convert("RGB")


@reward("jpeg_compressibility")
def jpeg_compressibility(completions) -> list[float]:
    """Minus the size of the picture's JPEG file in kB: plain pictures score higher."""
    return [-kilobytes(image, "jpeg_compressibility") for image in completions]


@reward("jpeg_incompressibility")
def jpeg_incompressibility(completions) -> list[float]:
    """The size of the picture's JPEG file in kB: busy pictures score higher."""
    return [kilobytes(image, "jpeg_incompressibility") for image in completions]


@reward("color_share", check=check_color)
def color_share(completions, color, *, enough: float = 1.0) -> list[float]:
    """0 to 1: share of the picture in the colour of the column `color`, over `enough`."""
    if not 0 < enough <= 1:
        raise RewardError(f"color_share: enough={enough:g}; expected a share of the picture above 0")
    shares = [
        float((name_colors(_picture(image, "color_share")) == NAMES.index(name)).mean())
        for image, name in zip(completions, color, strict=True)
    ]
    return [min(1.0, share / enough) for share in shares]
