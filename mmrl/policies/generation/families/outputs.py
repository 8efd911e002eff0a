"""Decoded pixels as what rewards read, PIL images and lists of them for videos, and such outputs as pixels again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.errors import DataError, got
from mmrl.media import Film, Sound
from mmrl.policies.generation.families.asking import Size

SAME_RATE = 0.01
"""Share by which a file's frames a second may differ from a generator's: 23.976 is 24."""


def as_images(pixels: Tensor) -> list[Any]:
    """N PIL images of `pixels (N, 3, H, W)` in [-1, 1]."""
    from PIL import Image

    whole = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return [Image.fromarray(image) for image in whole.permute(0, 2, 3, 1).cpu().numpy()]


def as_videos(pixels: Tensor) -> list[list[Any]]:
    """N lists of F PIL images of `pixels (N, 3, F, H, W)` in [-1, 1]."""
    return [as_images(video.transpose(0, 1)) for video in pixels]


def picture_pixels(picture: Any, size: Size, whose: str) -> Tensor:
    """(3, H, W) in [-1, 1] of a PIL picture of that size. whose: for the error."""
    if isinstance(picture, list | Sound):
        raise DataError(f"{whose}: expected a picture, got {got(picture)}")
    if picture.size != (size.width, size.height):
        raise DataError(
            f"{whose} is {picture.size[0]} x {picture.size[1]}, and the policy draws {size.width} x {size.height}; "
            "set policy.width and policy.height"
        )
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def film_pixels(film: Any, size: Size, whose: str, rate: float) -> Tensor:
    """(3, F, H, W) in [-1, 1] of a list of F PIL frames of that size, `rate` a second where it says so."""
    if not isinstance(film, list):
        raise DataError(f"{whose}: expected the frames of a video, got {got(film)}")
    if len(film) != size.frames:
        raise DataError(f"{whose} has {len(film)} frames, and the policy draws {size.frames}; set policy.frames")
    if isinstance(film, Film) and abs(film.fps - rate) > SAME_RATE * rate:
        raise DataError(
            f"{whose} runs at {film.fps:g} frames a second, and the policy's at {rate:g}: the same frames would be "
            "another motion; store it at that rate"
        )
    return torch.stack([picture_pixels(frame, size, whose) for frame in film], 1)
