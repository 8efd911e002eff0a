"""MixGRPO-Flash: behind the last noise, fewer and better steps.

What follows the window of stochastic steps is deterministic and not trained, so it need not be the schedule's own: a
second-order solver takes a share of its steps. Rewards are then those of slightly different images than evaluation's,
which goes on with the schedule.

DPM-Solver++ (2M, midpoint; Lu et al. 2022, arXiv 2211.01095) for x_t = (1 - t) x_0 + t e, lambda = log((1 - t) / t),
h = lambda' - lambda, r = h_before / h:

    x' = (t' / t) x + (1 - t') (1 - e^-h) D,   D = x0 + (x0 - x0_before) / 2r

The first step and the one that ends at t = 0 are of first order. Source of the compression: Tencent-Hunyuan/MixGRPO,
fastvideo/utils/sampling_utils.py, strategy "post", whose grid has one step less than it says and, where one remains,
stops at the window's end; ours ends at 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.sde import predicted_clean


def tail_times(times: Tensor, start: int, share: float) -> Tensor:
    """(n + 1,) times from `times[start]` to 0, n = max(1, int(share x steps left)): every so-manyth of the schedule, by
    straight lines between its points."""
    left = len(times) - 1 - start
    count = max(1, int(share * left))
    at = torch.linspace(start, len(times) - 1, count + 1, dtype=torch.float64)
    low = at.floor().long().clamp(max=len(times) - 2)
    mixed = torch.lerp(times.double().cpu()[low], times.double().cpu()[low + 1], at - low)
    return mixed.to(times)


def solve(x: Tensor, conditioned: Conditioned, velocity, times: Tensor) -> Tensor:
    """(N, ...) clean latents from `x (N, ...)` at `times[0]`, float32; one call of `velocity` a step."""
    x, before, h_before = x.float(), None, None
    for t, after in zip(times.tolist(), times[1:].tolist(), strict=False):
        v = velocity(x, torch.full((len(x),), t, device=x.device), conditioned)
        clean = predicted_clean(v, x, t)
        h = _lambda(after) - _lambda(t)
        second = before is not None and h_before is not None and after > 0 and bool(torch.isfinite(h_before))
        pointed = clean + (clean - before) * (h / h_before / 2) if second else clean
        x = after / t * x + (1 - after) * (1 - torch.exp(-h).to(x)) * pointed
        before, h_before = clean, h
    return x


def _lambda(t: float) -> Tensor:
    time = torch.tensor(t, dtype=torch.float64)
    return torch.log((1 - time) / time)
