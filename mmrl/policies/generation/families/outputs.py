"""Decoded pixels as what rewards read: PIL images, and lists of them for videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_images(pixels: Tensor) -> list[Any]:
    """N PIL images of `pixels (N, 3, H, W)` in [-1, 1]."""
    from PIL import Image

    whole = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return [Image.fromarray(image) for image in whole.permute(0, 2, 3, 1).cpu().numpy()]


def as_videos(pixels: Tensor) -> list[list[Any]]:
    """N lists of F PIL images of `pixels (N, 3, F, H, W)` in [-1, 1]."""
    return [as_images(video.transpose(0, 1)) for video in pixels]
