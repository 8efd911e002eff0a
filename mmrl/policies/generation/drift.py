"""How far a generator has moved from where it began: the error of its velocity on fixed states.

    drift = mean((v_theta(x, t) - v_base(x, t))^2) / mean(v_base(x, t)^2)

The states lie on the base's own ODE trajectories, so they are what a rollout meets. They and the base's velocities are
computed once, before the first step, and kept with the run: no second copy of the weights is needed, also after a
resume. For a transition likelihood it is the KL of a step up to the factor of its noise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrl.policies.generation.sampling import initial_noise
from mmrl.randomness import Key
from mmrl.record import Prompt

PLACES = (0.1, 0.5, 0.9)
"""Where on the way from noise to image the states are taken, as shares of its steps."""


class Probes:
    """States `x (N, ...)` at times `t (N,)` of prompts `prompts[index]`, and the base's velocities there.

    path  a file they are kept in; where it exists, they are read
    """

    def __init__(self, policy: Any, prompts: Sequence[Prompt], path: Path | None = None):
        self.policy, self.prompts, self.path = policy, list(prompts), path
        self.key = Key(0, purpose="probe")
        self.kept: dict[str, Tensor] = {}

    def begin(self, *, write: bool = True) -> None:
        """Take the states, or read them; `write`: whether this rank keeps them."""
        if self.path is not None and self.path.exists():
            self.kept = load_file(self.path)
            return
        self.kept = {name: value.contiguous() for name, value in self._taken().items()}  # files take no views
        if self.path is not None and write:
            half = self.path.with_suffix(".half")
            save_file(self.kept, half)
            os.replace(half, self.path)

    @torch.no_grad()
    def drift(self) -> float:
        """0 for the base; 1: as far as its velocity is long."""
        index, base = self.kept["index"], self.kept["velocity"]
        now = self._velocity(self.kept["x"], self.kept["t"], index).cpu()
        return float((now - base).square().mean() / base.square().mean())

    def _velocity(self, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        policy, device = self.policy, self.policy.device
        policy.calls.purpose = "watched"
        conditioned = policy._conditioned(policy.frozen.encode(self.prompts, device), index)
        with policy._weights("current") as module:
            return module.velocity(x.to(device), t.to(device), conditioned)

    @torch.no_grad()
    def _taken(self) -> dict[str, Tensor]:
        policy, rows = self.policy, torch.arange(len(self.prompts))
        policy._compared(self.prompts[0])
        times = policy.times(policy.config.eval_steps)
        steps = len(times) - 1
        wanted = sorted({min(int(share * steps), steps - 1) for share in PLACES})
        x = torch.stack([initial_noise(self.key, p.id, 0, policy.shape) for p in self.prompts])
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for i in range(wanted[-1] + 1):
            t = times[i].expand(len(rows)).cpu()
            v = self._velocity(x, t, rows).cpu()
            if i in wanted:
                found.append((x, t.clone(), rows, v))
            x = x + (times[i + 1] - times[i]).cpu() * v
        names = ("x", "t", "index", "velocity")
        return {name: torch.cat(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}
