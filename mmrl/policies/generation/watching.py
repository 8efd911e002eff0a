"""What the self-check of a likelihood without log-probs compares: velocities as the sampler saw them, and now.

A trainer compared with itself would agree on whatever it does. So a few states that sampling went through are kept with
the velocity it found there, of the first rollouts since the policy was built, and asked again through the forward that
trains, under the conditions that were stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.generation.likelihoods.base import Predictions, States
from mmrl.record import Rollouts
from mmrl.stages import Need

ROWS, STEPS = 4, 2


@dataclass
class Seen(States):
    """v  (N, ...) the velocity that the sampler found"""

    v: Tensor


@dataclass
class Watched:
    """weights  those that sampled
    kept     {(prompt id, member): [(x, t, v)]} of `STEPS` steps of the first `ROWS` rows sampled last
    closed   they have been compared: nothing is kept any more
    """

    weights: str = "current"
    kept: dict[tuple[str, int], list[tuple[Tensor, float, Tensor]]] = field(default_factory=dict)
    closed: bool = False

    def of(self, prompts: Sequence[str], members: Tensor, times: Tensor, weights: str) -> Callable[..., None] | None:
        """What sampling is to tell of its steps; None once the comparison is done."""
        if self.closed:
            return None
        self.kept, self.weights = {}, weights
        wanted = {int(len(times) * share) for share in (0.3, 0.6)}
        names = list(zip(prompts, members.tolist(), strict=True))[:ROWS]

        def watch(step: int, rows: Tensor, states: Tensor, velocities: Tensor) -> None:
            for place, row in enumerate(rows.tolist()) if step in wanted else ():
                if row < ROWS:
                    seen = states[place].clone(), float(times[step]), velocities[place].clone()
                    self.kept.setdefault(names[row], []).append(seen)

        return watch

    def states(self, rollouts: Rollouts) -> tuple[Seen | None, tuple[Tensor, Tensor]]:
        """The states kept of these rows, and where they stand in `(B, STEPS)`; None where there are none."""
        found: list[tuple[Tensor, float, Tensor]] = []
        at: list[tuple[int, int]] = []
        for row, (prompt, member) in enumerate(zip(rollouts.prompt.tolist(), rollouts.member.tolist(), strict=True)):
            for step, seen in enumerate(self.kept.get((rollouts.prompts[prompt].id, member), ())):
                found.append(seen)
                at.append((row, step))
        rows, steps = torch.tensor(at, dtype=torch.long, device=rollouts.mask.device).reshape(-1, 2).unbind(1)
        if not found:
            return None, (rows, steps)
        x, t, v = zip(*found, strict=True)
        return Seen(torch.stack(x), torch.tensor(t, device=rows.device), torch.stack(v)), (rows, steps)

    @staticmethod
    def score(states: Any, predict: Predictions, asked: Sequence[Need]) -> dict[str, Tensor]:
        """The root mean square by which a velocity differs now, in units of what the sampler found."""
        gap = (predict.current(guided=True) - states.v).flatten(1).square().mean(1)
        return {"log_probs": (gap / states.v.flatten(1).square().mean(1)).sqrt()}

    @staticmethod
    def nothing(rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        blank = torch.zeros(len(rollouts), STEPS, device=rollouts.mask.device)
        return blank, blank.clone(), torch.zeros_like(blank, dtype=torch.bool)

    def compared(self, rollouts: Rollouts, at: tuple[Tensor, Tensor], gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.closed = True
        old, new, mask = self.nothing(rollouts)
        return old, new.index_put(at, gap), mask.index_put(at, torch.ones_like(gap, dtype=torch.bool))
