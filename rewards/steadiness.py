"""How a video changes, in numbers that need no weights and no optical flow.

Frames are read as shares of full brightness, averaged down to at most `side` pixels a side, so that noise of single
pixels and thin edges count little. A pixel's change from frame to frame is split into what comes back at the next frame
and what does not:

    there and back   min(|b - a|, |c - b|) of three frames a, b, c, where the two changes have opposite signs
    motion           what else changes

    flicker               1 - 5 x the mean there-and-back, at least 0: a still video and a smooth one score 1
    motion_magnitude      the mean of the rest, over `enough`, at most 1: a still video scores 0, and so does flicker
    temporal_consistency  how much the colours of a frame are those of the frame before and of the first one, wherever
                          they are: the overlap sum sqrt(p q) of colour histograms. Movement costs nothing; what
                          appears, vanishes or changes its colour does

A still picture is perfect by the first and the last: train them together with a reward that wants motion.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mmrl.errors import RewardError
from mmrl.rewards.registry import reward

SIDE, BINS = 32, 6
FLICKER_SCALE = 5.0
"""A fifth of full brightness there and back at every pixel is worth nothing."""


def read_frames(frames: Any, name: str, least: int = 2, side: int = SIDE) -> np.ndarray:
    """(F, h, w, 3) of 0 to 1. Raises RewardError for what is no video of `least` frames of one size."""
    if not isinstance(frames, list | tuple) or len(frames) < least or not all(hasattr(f, "convert") for f in frames):
        got = f"{len(frames)} frame(s)" if isinstance(frames, list | tuple) else f"a {type(frames).__name__}"
        raise RewardError(f"{name} reads videos, lists of at least {least} PIL images; got {got}")
    if len({frame.size for frame in frames}) > 1:
        raise RewardError(f"{name}: frames of different sizes, {sorted({frame.size for frame in frames})}")
    factor = max(1, round(max(frames[0].size) / side))
    return np.stack([np.asarray(f.convert("RGB").reduce(factor), dtype=np.float32) / 255 for f in frames])


def there_and_back(frames: np.ndarray) -> np.ndarray:
    """(F - 2, ...) of each change, what the next one takes back."""
    change = np.diff(frames, axis=0)
    opposite = change[:-1] * change[1:] < 0
    return np.where(opposite, np.minimum(np.abs(change[:-1]), np.abs(change[1:])), 0.0)


def flicker_of(frames: np.ndarray) -> float:
    """Mean there-and-back; 0 for fewer than three frames."""
    return float(there_and_back(frames).mean()) if len(frames) > 2 else 0.0


def motion_of(frames: np.ndarray) -> float:
    """Mean change that is not taken back at the next frame."""
    change, back = np.abs(np.diff(frames, axis=0)), np.zeros_like(frames[1:])
    if len(frames) > 2:
        taken = there_and_back(frames)  # a change may be taken back, or take one back
        back[:-1] = taken
        back[1:] = np.maximum(back[1:], taken)
    return float((change - back).mean())


def histogram(frame: np.ndarray) -> np.ndarray:
    """(BINS^3,) shares of colours; a colour between two bins counts in both, so that a small change is a small one."""
    place = frame.reshape(-1, 3) * (BINS - 1)
    low = np.clip(np.floor(place).astype(int), 0, BINS - 2)
    high = place - low
    shares = np.zeros((BINS,) * 3)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, high, 1 - high), axis=1)
        np.add.at(shares, tuple((low + np.array(corner)).T), weight)
    return shares.ravel() / len(place)


def consistency_of(frames: np.ndarray) -> float:
    shares = [histogram(frame) for frame in frames]
    before = [float(np.sqrt(a * b).sum()) for a, b in pairwise(shares)]
    first = [float(np.sqrt(shares[0] * b).sum()) for b in shares[1:]]
    return min(1.0, (sum(before) + sum(first)) / (2 * len(before)))


@reward("flicker")
def flicker(completions, *, side: int = SIDE) -> list[float]:
    """0 to 1, 1 for a video without flicker: nothing that changes at one frame is taken back at the next."""
    frames = [read_frames(each, "flicker", 3, side) for each in completions]
    return [max(0.0, 1 - FLICKER_SCALE * flicker_of(each)) for each in frames]


@reward("motion_magnitude")
def motion_magnitude(completions, *, enough: float = 0.05, side: int = SIDE) -> list[float]:
    """0 to 1: mean change from frame to frame that stays, over `enough`; flicker is no motion."""
    if enough <= 0:
        raise RewardError(f"motion_magnitude: enough={enough:g}; expected a share of full brightness above 0")
    return [min(1.0, motion_of(read_frames(each, "motion_magnitude", 2, side)) / enough) for each in completions]


@reward("temporal_consistency")
def temporal_consistency(completions, *, side: int = SIDE) -> list[float]:
    """0 to 1: how much the colours of each frame are those of the frame before and of the first."""
    return [consistency_of(read_frames(each, "temporal_consistency", 2, side)) for each in completions]
