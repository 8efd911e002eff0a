"""Objectives weighed by their own trend and noise: RECAP's dynamic reweighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.credit.rollouts import component
from mmrl.objective.numerics import whole_rewards
from mmrl.record import Batch
from mmrl.stages import stage

EPS = 1e-6


def strain(losses: Sequence[float], window: int) -> float:
    """How badly an objective needs weight: c + i of its last 2 `window` losses, each 0 or more.

    c = mean of the last window / mean of the one before; i = std of the last / the sum of both means. Stalled, c is
    1; falling, it is less.
    """
    before, now = losses[-2 * window : -window], losses[-window:]
    old, new = fmean(before), fmean(now)
    convergence = new / old if old > EPS else 1.0
    return convergence + (pstdev(now) / (old + new) if old + new > EPS else 0.0)


def objective_weights(losses: Mapping[str, Sequence[float]], window: int, temperature: float) -> dict[str, float]:
    """{objective: lambda}, which add up to their number: K softmax(s / T); 1 each until all have 2 `window` losses."""
    if not losses or any(len(each) < 2 * window for each in losses.values()):
        return dict.fromkeys(losses, 1.0)
    strains = torch.tensor([strain(each, window) for each in losses.values()], dtype=torch.float64)
    shares = torch.softmax(strains / temperature, 0) * len(losses)
    return dict(zip(losses, shares.tolist(), strict=True))


@stage(
    "shaping",
    paper="RECAP, arXiv 2510.21978",
    formula="r = 1/K sum_k lambda_k r_k; lambda = K softmax(s / T), s = mu/mu~ + std/(mu + mu~) of 1 - mean r_k",
    confidence="reconstructed",
    scope="batch",
    needs=("components",),
)
class recap:
    """Reward components that stall or jump weigh more than those that are on their way. Replaces the reward. (B,)

    objectives   the components that are weighed; None: the run's rewards, or where there is one, all that it
                 tells. Each must lie in [0, 1]; its loss is 1 - its mean
    window       W: steps of a window, of which the last two are read
    temperature  T of the softmax over objectives

    Weights of a step come of the steps before it. Source: equation 1 by a secondary write-up; W is ours.
    """

    def __init__(
        self, *, objectives: list[str] | None = None, window: int = 10, temperature: float = 5.0
    ) -> None:  # fmt: skip
        if window < 1 or temperature <= 0:
            raise ConfigError(f"recap: window {window}, temperature {temperature}: expected 1 or more, and above 0")
        self.objectives, self.window, self.temperature = objectives, window, temperature
        self.losses: dict[str, list[tuple[int, float]]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        names = self.objectives or whole_rewards(batch.components)
        values = {name: component(batch, name, "recap") for name in names}
        past = {name: [loss for step, loss in self.losses.get(name, []) if step < batch.step] for name in names}
        weights = objective_weights(past, self.window, self.temperature)
        for name, each in values.items():
            self._remember(name, each, batch)
        mixed = sum(weights[name] * each for name, each in values.items()) / len(names)
        return torch.where(torch.isnan(batch.reward), batch.reward, torch.as_tensor(mixed).to(batch.reward))

    def _remember(self, name: str, values: Tensor, batch: Batch) -> None:
        """The loss of this step, in place of one of an earlier round of the same step."""
        seen = values[batch.counted & ~torch.isnan(values)].double()
        if not len(seen):
            return
        if not (seen.min() >= 0 and seen.max() <= 1):
            raise ConfigError(
                f"recap: component {name!r} must lie in [0, 1], got [{seen.min():g}, {seen.max():g}]; name those that "
                "do in `objectives`"
            )
        before = [each for each in self.losses.get(name, []) if each[0] != batch.step]
        self.losses[name] = [*before, (batch.step, float(1 - seen.mean()))][-2 * self.window :]

    def state_dict(self) -> dict[str, Any]:
        return {"losses": [[name, *each] for name, each in self.losses.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = {name: [(int(step), loss) for step, loss in each] for name, *each in state["losses"]}
