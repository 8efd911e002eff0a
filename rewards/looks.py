"""How alike two pictures look: structural similarity in the four bands of a Haar transform.

Table2LaTeX-RL calls it CW-SSIM; its code splits both pictures once by the Haar wavelet and averages one global SSIM per
band. The second picture's size wins.
"""

from __future__ import annotations

from typing import Any

STEADY = 0.01**2, 0.03**2  # SSIM's constants for values in [0, 1]


def wavelet_similarity(first: Any, second: Any) -> float:
    """In [-1, 1]; 1 for equal pictures. Both are read as gray."""
    import numpy as np

    size = tuple(max(2, side - side % 2) for side in second.size)
    a, b = (np.asarray(each.convert("L").resize(size), dtype=np.float64) / 255 for each in (first, second))
    return float(np.mean([_similarity(x, y) for x, y in zip(_haar(a), _haar(b), strict=True)]))


def _haar(picture: Any) -> list:
    """The four half-size bands: mean, and differences across, down and both."""
    p, q, r, s = picture[0::2, 0::2], picture[0::2, 1::2], picture[1::2, 0::2], picture[1::2, 1::2]
    return [(p + q + r + s) / 2, (p - q + r - s) / 2, (p + q - r - s) / 2, (p - q - r + s) / 2]


def _similarity(a: Any, b: Any) -> float:
    light, contrast = STEADY
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    means = (2 * a.mean() * b.mean() + light) / (a.mean() ** 2 + b.mean() ** 2 + light)
    return float(means * (2 * covariance + contrast) / (a.var() + b.var() + contrast))
