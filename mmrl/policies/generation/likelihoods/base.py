"""The contract of a likelihood: what a rollout keeps, what one forward scores, and what is made of the predictions.

A likelihood of your own is a subclass in a file of yours, `policy.likelihood: my.py:Mine`. Sampling asks it for the
plan of noise (`plan`) and gives it what came out (`record`); `evaluate` asks it for the states to score (`work`) and,
inside the one forward of the wrapped module, for their numbers (`score`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from mmrl.policies import likelihood
from mmrl.policies.generation.steps import StepPlan, ode_plan
from mmrl.randomness import Key
from mmrl.record import Request, Rollouts
from mmrl.stages import Need

if TYPE_CHECKING:
    from mmrl.policies.generation.sampling import Sampled

S = TypeVar("S", bound="States")


@dataclass
class States:
    """N states to predict at. Subclasses add tensors `(N, ...)` of their own, or None.

    x  (N, ...) float32; t (N,) times
    """

    x: Tensor
    t: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def rows(self: S, rows: Tensor) -> S:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: None if v is None else v[rows] for k, v in values.items()})


@dataclass
class Work:
    """What a forward scores of rollouts.

    states  N of them
    row     (N,) the rollout each belongs to
    at      (rows (M,), actions (M,)) places in `(B, T)`, and `which (M,)` of the N states is scored there
    """

    states: States
    row: Tensor
    at: tuple[Tensor, Tensor]
    which: Tensor


@dataclass
class Kept:
    """What rollouts keep of being sampled, per row; see `mmrl.record.Rollouts` for the names."""

    actions: Tensor
    mask: Tensor
    old_log_probs: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    replay: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Drawn:
    """What a likelihood is told of B rollouts that were sampled.

    prompts, members  ids and places, which key draws; times (S + 1,) of the sampler
    """

    prompts: Sequence[str]
    members: Tensor
    plan: StepPlan
    times: Tensor
    sampled: Sampled
    key: Key


class Predictions(Protocol):
    """Velocities at the states of one forward, float32, each computed when it is first asked for."""

    def current(self, *, guided: bool) -> Tensor:
        """(N, ...) by the weights of the pass, with gradient in an update; `guided` as rollouts are sampled."""
        ...

    def of(self, weights: str, *, guided: bool, guidance: float = 1.0) -> Tensor:
        """(N, ...) by "reference" or "anchor" weights, without gradient; or with a guidance scale of its own."""
        ...


class Likelihood(likelihood.Likelihood):
    """What a generator's likelihood says besides: where noise is drawn, what is kept, which states are scored.

    `kept` are columns that `record` fills; `reads_unconditional`: its states may bring `without`, what the
    unconditional pass found at them (`unconditional`).
    """

    reads_unconditional: ClassVar[bool] = False

    @classmethod
    def offers(cls) -> frozenset[str]:
        return super().offers() | ({"step_rewards"} if cls.trains == "ratio" else set())

    def plan(self, prompts: Sequence[str], members: Tensor, times: Tensor, key: Key) -> StepPlan:
        """Where sampling draws noise; nowhere unless a likelihood says so."""
        return ode_plan(len(members), len(times) - 1, members)

    def check(self, request: Request, times: Tensor) -> None:
        """Refuse a request that leaves nothing to train; PolicyError or ConfigError."""

    def record(self, drawn: Drawn) -> Kept:
        """What `work` needs of these rollouts."""
        raise NotImplementedError

    def work(self, rollouts: Rollouts, asked: Sequence[Need]) -> Work:
        """The states that answer what is asked of these rollouts, besides their log-probs."""
        raise NotImplementedError

    @classmethod
    def compares(cls, asked: Sequence[Need]) -> frozenset[str]:
        """The other weights, "reference" and "anchor", that `score` will ask for."""
        return frozenset()

    def labels(self, rollouts: Rollouts) -> list[list[str]]:
        """B lists of T texts for people."""
        return [[str(t) for t in range(rollouts.mask.shape[1])] for _ in range(len(rollouts))]


def unplanned(plan: StepPlan, sampled: Sampled, device: torch.device) -> Kept:
    """Of rollouts that are not trained on: a row of steps, none an action."""
    rows, steps = plan.trained.shape
    actions = torch.arange(steps, device=device).expand(rows, -1).contiguous()
    return Kept(actions, plan.trained.to(device), sampled.log_probs)


def option(need: Need, name: str, default: Any) -> Any:
    """A parameter of a probe."""
    return dict(need.options).get(name, default)


def settings_of(values: Mapping[str, float], rows: int) -> dict[str, Tensor]:
    """Each setting as a column of the replay."""
    return {name: torch.full((rows,), value) for name, value in values.items()}
