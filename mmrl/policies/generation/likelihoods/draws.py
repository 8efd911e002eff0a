"""The draws of (time, noise) that the matching loss of a clean output is measured at.

Everything is a pure function of the key of a rollout, so micro-batches, ranks and resumed runs agree. Times are kept
with the rollout, noise as the number that it is drawn from again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.settings import Section


class Draws(Section):
    """How often and where the matching loss of an output is measured.

    count   J draws of each output: more means less variance, at one forward and backward pass each
    times   "schedule": times of the rollout's own schedule; "uniform" between `low` and `high`; "logit_normal"
    first, last  steps of the schedule to draw from, [first, last); last null means to its end
    strata  one draw from each of J equal parts of the range, in place of J that are independent; on the schedule
            without strata: J different steps in random order
    low, high    of uniform times, before the shift
    shift   s of t = s u / (1 + (s - 1) u), for uniform and logit-normal times; the pipeline's own has 3 for SD3
    shared  whose draws are equal: "each" has its own, "group": all of a prompt's members share theirs, which takes
            the draw out of their comparison; "batch": times are those of all prompts too
    """

    count: int = Field(6, ge=1)
    times: Literal["schedule", "uniform", "logit_normal"] = "schedule"
    first: int = Field(0, ge=0)
    last: int | None = Field(None, ge=1)
    strata: bool = True
    low: float = Field(0.0, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)
    shift: float = Field(3.0, gt=0)
    shared: Literal["each", "group", "batch"] = "each"

    @model_validator(mode="after")
    def _ordered(self) -> Draws:
        if self.low >= self.high:
            raise ConfigError(f"draws: low={self.low:g} is not below high={self.high:g}")
        return self

    def steps(self, available: int) -> tuple[int, int]:
        """The range [first, last) of a schedule of `available` steps; ConfigError where it has no J of them."""
        last = available if self.last is None else self.last
        said = f"draws: {self.count} times from steps [{self.first}, {last}) of a schedule of {available}"
        if last > available:
            raise ConfigError(f"{said}; set policy.draws.last={available}, or policy.steps={last}")
        if last - self.first < self.count:
            raise ConfigError(f"{said}; lower draws.count or draws.first, or raise policy.steps")
        return self.first, last


LEAST_TIME = 0.01
"""Of times that are not the schedule's: nearer to 0 the loss says nothing of the model."""


def draw_times(draws: Draws, schedule: Tensor, key: Key) -> Tensor:
    """(J,) float32 times in (0, 1] of one rollout; `schedule (S + 1,)`."""
    generator = key.at(purpose="draw times").generator()
    places = torch.rand(draws.count, generator=generator, dtype=torch.float64)
    if draws.times == "schedule":
        low, high = draws.steps(len(schedule) - 1)
        if not draws.strata:
            return schedule[low + torch.randperm(high - low, generator=generator)[: draws.count]].float()
        edges = torch.linspace(low, high, draws.count + 1, dtype=torch.float64).long()
        return schedule[edges[:-1] + (places * (edges[1:] - edges[:-1])).long()].float()
    if draws.strata:
        places = (torch.arange(draws.count) + places) / draws.count
    if draws.times == "uniform":
        u = draws.low + (draws.high - draws.low) * places
    else:
        u = torch.special.ndtri(places.clamp(1e-9, 1 - 1e-9)).sigmoid()
    return (draws.shift * u / (1 + (draws.shift - 1) * u)).clamp(min=LEAST_TIME).float()


def drawn(draws: Draws, schedule: Tensor, prompts: Sequence[str], members: Tensor, key: Key) -> tuple[Tensor, Tensor]:
    """(B, J) times, and (B,) the number that each row's noise is drawn from."""
    times, seeds = [], []
    for prompt, member in zip(prompts, members.tolist(), strict=True):
        own = key.at(prompt=prompt, member=member if draws.shared == "each" else 0)
        when = own.at(prompt="") if draws.shared == "batch" else own
        times.append(draw_times(draws, schedule, when))
        seeds.append(own.at(purpose="draw noise").number)
    return torch.stack(times), torch.tensor(seeds, dtype=torch.long)


def draw_noise(seeds: Tensor, count: int, shape: Sequence[int]) -> Tensor:
    """(B, J, ...) standard normal, the same whatever the device and the other rows."""
    generators = (torch.Generator().manual_seed(seed) for seed in seeds.tolist())
    return torch.stack([torch.randn(count, *shape, generator=generator) for generator in generators])
