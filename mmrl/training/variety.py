"""How different the outputs of one prompt are: in pixels, and in a small descriptor that shifts and noise leave alone.

Both are mean distances of pairs inside a prompt, averaged over prompts. A model that learned one picture for a prompt
is at 0, whatever the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from mmrl.errors import ConfigError

GRID, ANGLES, FRAMES = 4, 8, 4
GROUND = 0.2
"""Added to each cell, so that black pictures have a direction too."""
Embed = Callable[[list[Any]], Any]
"""Outputs to (N, D): CLIP, DINO or what you trust. Rows are scaled to length 1."""


def diversity(
    groups: Sequence[Sequence[Any]], embed: Embed | None = None, *, called: str = "the embedding"
) -> dict[str, float]:
    """{"pixels": ..., "embedding": ...} of outputs by prompt; prompts with one output say nothing.

    pixels     root mean square difference, in units of the range: 0 to 1
    embedding  1 - cosine, of `embed` or of `descriptor`; errors name it as `called`
    """
    outputs = [output for group in groups for output in group]
    pixels = np.stack([values(output) for output in outputs])
    found = np.asarray(embed(outputs), dtype=np.float64) if embed else np.stack([descriptor(o) for o in outputs])
    if found.ndim != 2 or len(found) != len(outputs):
        raise ConfigError(f"{called} of {len(outputs)} outputs has shape {found.shape}; expected ({len(outputs)}, D)")
    if not np.isfinite(found).all():
        raise ConfigError(f"{called} of output {int((~np.isfinite(found)).any(1).argmax())} is not finite")
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    places = np.cumsum([0, *map(len, groups)])
    pairs = [list(combinations(range(a, b), 2)) for a, b in pairwise(places) if b - a > 1]
    if not pairs:
        raise ConfigError("diversity needs at least one prompt with two outputs")
    return {
        "pixels": _mean(pairs, lambda i, j: float(np.sqrt(((pixels[i] - pixels[j]) ** 2).mean()))),
        "embedding": _mean(pairs, lambda i, j: float(1 - found[i] @ found[j])),
    }


def _mean(pairs: list[list[tuple[int, int]]], distance: Callable[[int, int], float]) -> float:
    return float(np.mean([np.mean([distance(i, j) for i, j in group]) for group in pairs]))


def values(output: Any) -> np.ndarray:
    """A flat vector in [0, 1] of a picture, of evenly spread frames of a film, or of a sound's samples."""
    if hasattr(output, "samples"):
        return (np.asarray(output.samples, dtype=np.float64).ravel() + 1) / 2
    return np.concatenate([picture.ravel() for picture in _pictures(output)])


def descriptor(output: Any) -> np.ndarray:
    """Mean colour and edge directions in 4 x 4 cells of a picture or of frames; loudness in 64 parts of a sound.

    No weights: for semantics name an embedding of your own.
    """
    if hasattr(output, "samples"):
        parts = np.array_split(np.asarray(output.samples, dtype=np.float64).ravel(), 64)
        return np.array([np.sqrt((part**2).mean()) if len(part) else 0.0 for part in parts])
    return np.concatenate([_cells(picture) for picture in _pictures(output)])


def _pictures(output: Any) -> list[np.ndarray]:
    """(H, W, 3) arrays in [0, 1]."""
    frames = [output] if hasattr(output, "convert") else list(output)
    if not frames or not hasattr(frames[0], "convert"):
        raise ConfigError(f"diversity is measured on pictures, films and sounds; got {type(output).__name__}")
    kept = [frames[i * len(frames) // min(FRAMES, len(frames))] for i in range(min(FRAMES, len(frames)))]
    return [np.asarray(frame.convert("RGB"), dtype=np.float64) / 255 for frame in kept]


def _cells(picture: np.ndarray) -> np.ndarray:
    down, across = np.gradient(picture.mean(2))
    strength, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi
    bins = np.minimum((angle / np.pi * ANGLES).astype(int), ANGLES - 1)
    parts = []
    for rows in np.array_split(np.arange(len(picture)), GRID):
        for columns in np.array_split(np.arange(picture.shape[1]), GRID):
            cell = np.ix_(rows, columns)
            colour = np.append(picture[cell].mean((0, 1)), GROUND)
            edges = np.bincount(bins[cell].ravel(), strength[cell].ravel(), ANGLES) / max(bins[cell].size, 1)
            parts.append(np.concatenate([colour, edges]))
    return np.concatenate(parts)
