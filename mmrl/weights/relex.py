"""RELEX: weights of a run move along one line; fit its beginning, read off a later step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.tools import tool


@dataclass(frozen=True)
class Line:
    """delta(t) = (slope t + intercept) direction.

    direction  (n,) of unit length
    explained  share of the squared deltas that lie along it, in [0, 1]
    """

    direction: Tensor
    slope: float
    intercept: float
    explained: float

    def at(self, step: float) -> Tensor:
        """(n,) the delta there."""
        return (self.slope * step + self.intercept) * self.direction


def line_through(deltas: Tensor, steps: Sequence[float], window: int | None = None) -> Line | None:
    """deltas (K, n): weights less those of the start, at `steps` (K,). None for a tensor that did not move.

    window  the last checkpoints that are fitted; the direction is that of all

    The K x K products of the deltas say it all, so nothing of n x n is made; they are taken in the deltas' own
    precision, what follows in float64.
    """
    gram = (deltas @ deltas.T).double()
    values, vectors = torch.linalg.eigh(gram)
    total = float(values.clamp(min=0).sum())
    if total <= 0 or not torch.isfinite(values).all():
        return None
    largest = float(values[-1].sqrt())
    direction = (deltas.T @ vectors[:, -1].to(deltas)) / largest
    along = (vectors[:, -1] * largest)[-(window or len(steps)) :]
    at = torch.tensor(list(steps), dtype=torch.float64, device=along.device)[-len(along) :]
    centred = at - at.mean()
    slope = float((centred * along).sum() / (centred**2).sum())
    return Line(direction, slope, float(along.mean() - slope * at.mean()), float(values[-1]) / total)


@tool(
    "relex",
    command="mmrl extrapolate RUN FOLDER --step 500",
    paper="RELEX: rank-1 trajectory extrapolation, 2026; code weizhepei/RELEX",
    formula="M = [theta_t - theta_0], M M^T = U L U^T, v = M^T u_1 / sigma_1, c_t = sigma_1 u_1t ~ k t + b; "
    "theta(t*) = theta_0 + (k t* + b) v",
    confidence="verified",
)
def extrapolated(
    deltas: Tensor, steps: Sequence[float], step: float, *, window: int | None = None
) -> tuple[Tensor, float]:
    """Each tensor's weights follow one line; a later step is read off it.

    deltas (K, ...), at `steps` (K,); `step` where to; `window` the last checkpoints that are fitted, all if None.
    Returns the delta there (...) and the share of the movement that the line explains: 1 and zeros for a tensor that
    did not move. Source: weizhepei/RELEX, svd_extrapolation.py, with its paper's rank 1 and linear fit; there time is
    the index of a checkpoint, here its step.
    """
    if len(steps) != len(deltas) or len(set(steps)) < 2:
        raise ConfigError(f"relex: {len(set(steps))} different steps of {len(deltas)} checkpoints; expected 2 or more")
    if window is not None and not 2 <= window <= len(steps):
        raise ConfigError(f"relex: window={window}; a line takes 2 to {len(steps)} of these checkpoints")
    line = line_through(deltas.flatten(1), steps, window)
    if line is None:
        return torch.zeros_like(deltas[0]), 1.0
    return line.at(step).reshape(deltas.shape[1:]).to(deltas), line.explained
