"""`transition`: a stochastic denoising step is an action, a Gaussian around the sampler's mean, with a log-prob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.likelihoods.base import (
    Drawn,
    Kept,
    Likelihood,
    Predictions,
    States,
    Work,
    option,
    unplanned,
)
from mmrl.policies.generation.sampling import WORTH, stored
from mmrl.policies.generation.sde import (
    KINDS,
    Scoring,
    gaussian_kl,
    gradient_equalizer,
    mean_square,
    noise,
    sde_step,
    stochastic_steps,
    transition_log_prob,
)
from mmrl.policies.generation.steps import StepPlan, check_group_size, plan_steps
from mmrl.randomness import Key
from mmrl.record import Request, Rollouts
from mmrl.stages import Need


@dataclass
class Transitions(States):
    """N denoising steps to score.

    x, x_next  (N, ...) the state before and after; means: those the rollout's step is scored by, and pushed: those it
               was drawn around, where kept and asked for; without: what its unconditional pass found, where kept
    t, t_next, t_first  (N,) times of the step, and the second time of its schedule
    level  (N,) of the step's noise, where steps differ
    """

    x_next: Tensor
    t_next: Tensor
    t_first: Tensor
    means: Tensor | None = None
    pushed: Tensor | None = None
    without: Tensor | None = None
    level: Tensor | None = None


class Transition(Likelihood):
    """`policy.sampler` says how a step is drawn and scored, `policy.train_steps` which steps are actions."""

    probes = frozenset({"reference_kl", "mean_shift"})
    reads_unconditional = True
    kept = frozenset({"step_std", "step_sizes", "step_equalizer", "branch", "process_reward"})

    @property
    def scoring(self) -> Scoring:
        return self.config.scoring()

    @property
    def actions(self) -> int:
        return self.config.steps

    def settings(self) -> dict[str, float]:
        scoring = self.scoring
        return {
            "kind": float(KINDS.index(scoring.kind)),
            "level": scoring.level if scoring.levels is None else -1.0,
            "sum": float(scoring.reduction == "sum"),
            "normalised": float(scoring.normalised),
        } | {f"level of step {i}": level for i, level in enumerate(scoring.levels or ())}

    # ---- acting

    def possible(self, times: Tensor) -> Tensor:
        """(S,) bool: steps of a rollout that can have a log-prob."""
        return stochastic_steps(self.scoring.kind, times, self.scoring.everywhere)

    def plan(self, prompts: Sequence[str], members: Tensor, times: Tensor, key: Key) -> StepPlan:
        config = self.config
        return plan_steps(
            config.train_steps, self.possible(times), prompts, members, key, config.same_initial_noise
        )  # fmt: skip

    def check(self, request: Request, times: Tensor) -> None:
        possible = self.possible(times)
        if not bool(possible.any()):
            raise ConfigError(
                f"sampler {self.scoring.kind!r} at level {self.scoring.levels or self.scoring.level} draws no noise, "
                "so there is nothing to train; choose another sampler or raise sampler.level"
            )
        if request.start is None:
            check_group_size(self.config.train_steps, possible, request.count)
        elif self.config.train_steps.select == "one":
            raise ConfigError(
                "policy.train_steps.select=one is a tree of its own, in which no row begins in another; choose all"
            )

    def record(self, drawn: Drawn) -> Kept:
        sampled, plan = drawn.sampled, drawn.plan
        kept = unplanned(plan, sampled, sampled.log_probs.device)
        kept.columns = self._step_columns(plan, drawn.times) | {WORTH: torch.where(plan.trained, sampled.worth, 0.0)}
        kept.replay = {
            "latents": sampled.latents,
            "first": sampled.first,
            "times": drawn.times.expand(len(plan.trained), -1),
        }
        kept.replay |= {
            name: found for name in ("means", "pushed", "without") if (found := getattr(sampled, name)) is not None
        }
        return kept

    def _step_columns(self, plan: StepPlan, times: Tensor) -> dict[str, Tensor]:
        """What the schedule alone says of each trained step."""
        kind, level = self.scoring.kind, self.scoring.everywhere
        values = {
            "step_std": noise(kind, times[:-1], times[1:], level, times[1]).std,
            "step_sizes": times[:-1] - times[1:],
            "step_equalizer": gradient_equalizer(kind, times, level),
        }
        columns = {Need(name).key: torch.where(plan.trained, value, 0.0) for name, value in values.items()}
        columns[Need("branch").key] = plan.branch
        return columns

    # ---- scoring

    def work(self, rollouts: Rollouts, asked: Sequence[Need]) -> Work:
        """All (row, step) pairs; a state that several rows of a tree go through is scored once."""
        rows, steps = rollouts.mask.nonzero(as_tuple=True)
        if not len(rows):
            raise PolicyError("these rollouts have no trained step: they were drawn by the ODE sampler (greedy)")
        first, which = unique_states(rollouts, rows, steps)
        means = {option(need, "to", "means") for need in asked if need.probe == "mean_shift"}
        return Work(self._transitions(rollouts, rows[first], steps[first], means), rows[first], (rows, steps), which)

    def _transitions(self, rollouts: Rollouts, rows: Tensor, steps: Tensor, means: set[str]) -> Transitions:
        replay = rollouts.replay
        column = steps - replay["first"][rows]
        for name in means - replay.keys():
            setting = "policy.push.keep" if name == "pushed" else "policy.keep_means"
            raise PolicyError(f"'mean_shift' compares with the {name} of the rollout: set {setting}=true")
        read = means | ({"without"} & replay.keys())
        return Transitions(
            x=stored(replay["latents"], rows, column).float(),
            t=replay["times"][rows, steps],
            x_next=stored(replay["latents"], rows, column + 1).float(),
            t_next=replay["times"][rows, steps + 1],
            t_first=replay["times"][rows, 1],
            level=self._levels(steps),
            **{name: stored(replay[name], rows, column) for name in read},
        )

    def _levels(self, steps: Tensor) -> Tensor | None:
        levels = self.scoring.levels
        return None if levels is None else torch.tensor(levels, device=steps.device)[steps]

    @classmethod
    def compares(cls, asked: Sequence[Need]) -> frozenset[str]:
        return frozenset(option(need, "to", "reference") for need in asked if need.probe == "reference_kl")

    def score(self, states: Transitions, predict: Predictions, asked: Sequence[Need]) -> dict[str, Tensor]:
        """ "mean_shift" is the mean's move since the rollout, (mu - mu_old)^2 / 2 std^2; option `to` "pushed": from the
        mean that noise was drawn around, which is the exact KL to the pushed step."""
        scoring = self.scoring
        velocity = predict.current(guided=True)
        level = scoring.level if states.level is None else states.level
        times = (states.t, states.t_next, level, states.t_first)
        mean, std = sde_step(scoring.kind, velocity, states.x, *times)
        log_probs = transition_log_prob(states.x_next, mean, std, scoring.reduction, scoring.normalised)
        if log_probs is None:
            raise PolicyError(f"the {scoring.kind} sampler at level {scoring.level} draws no noise: nothing to train")
        scores = {"log_probs": log_probs}
        for need in asked:
            if need.probe == "mean_shift":
                scores[need.key] = mean_square(mean, getattr(states, option(need, "to", "means"))) / (2 * std**2)
            elif need.probe == "reference_kl":
                base = predict.of(option(need, "to", "reference"), guided=True)
                # the difference stays outside no_grad: inside, the penalty would have no gradient
                if scoring.kl == "velocity_mse":
                    scores[need.key] = mean_square(velocity, base)
                else:
                    base_mean = sde_step(scoring.kind, base, states.x, *times).mean
                    scores[need.key] = gaussian_kl(mean, base_mean, std, states.t - states.t_next, scoring.kl)
        return scores

    def labels(self, rollouts: Rollouts) -> list[list[str]]:
        times = rollouts.replay.get("times")
        if times is None:
            return super().labels(rollouts)
        return [[f"t={t:.3f}" for t in row[:-1]] for row in times.tolist()]


def unique_states(rollouts: Rollouts, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Of N (row, step) pairs, the first of each state, and which state (N,) a pair is in."""
    assert rollouts.owner is not None
    state = torch.stack([rollouts.group[rows], steps, rollouts.owner[rows, steps]], 1)
    unique, which = torch.unique(state, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(rows), device=rows.device)
    first.scatter_reduce_(0, which, torch.arange(len(rows), device=rows.device), "amin")
    order = torch.argsort(first)  # pairs that are all unique keep their order, so nothing is rounded otherwise
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return first[order], place[which]
