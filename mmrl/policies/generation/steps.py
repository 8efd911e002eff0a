"""Which denoising steps are actions: everywhere, a random share, a window, or one step for each branch.

    all       every step is stochastic and trained, but the last (Flow-GRPO)
    fraction  every step is stochastic, a random share of them trained, drawn for each rollout (DanceGRPO)
    window    stochastic and trained inside a window, ODE outside (Flow-GRPO-Fast, MixGRPO); `also` adds steps
    one       one stochastic step a rollout: branches leave the ODE trajectory of a seed at every step, so that
              the final reward is the credit of that step (TempFlow-GRPO)

Everything is a pure function of the key, so ranks and resumed runs agree. Rows of equal (prompt, `seed`) start
from the same noise; until their first stochastic step they are one ODE trajectory, which is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.randomness import Key
from mmrl.record import Start
from mmrl.settings import Section


class TrainSteps(Section):
    """Which steps are stochastic and trained.

    select    see the module: all, fraction, window, one
    fraction  share of the trainable steps trained in each rollout (`fraction`)
    size      steps of the window; 2 to 4 are usual (`window`)
    low, high the window lies in [low, high); high null means all trainable steps. Early windows learn most
    order     "random": a new place every training step; "progressive": from noise to image, `stride` further
              every `every` training steps, and back to the start after the end (MixGRPO)
    pace      of the progressive window: "constant"; "decay": `every` falls in a straight line to `least` at the last
              place; "exp_decay": from `hold` on it shrinks by exp(-rate) a step, so that late, quiet steps get little
    least, rate, hold  of the two: 1, and MixGRPO's .1 and 13
    branches  rollouts that leave one seed's trajectory at the same step (`one`)
    also      steps that are stochastic and trained besides the window, such as those behind which a tree splits
              (`window`; BranchGRPO-Mix)
    """

    select: Literal["all", "fraction", "window", "one"] = "all"
    fraction: float = Field(0.6, gt=0, le=1)
    size: int = Field(2, ge=1)
    low: int = Field(0, ge=0)
    high: int | None = None
    order: Literal["random", "progressive"] = "random"
    every: int = Field(25, ge=1)
    stride: int = Field(1, ge=1)
    pace: Literal["constant", "decay", "exp_decay"] = "constant"
    least: int = Field(1, ge=1)
    rate: float = Field(0.1, gt=0)
    hold: int = Field(13, ge=0)
    branches: int = Field(6, ge=2)
    also: tuple[int, ...] = ()


@dataclass
class StepPlan:
    """stochastic  (B, S) bool: steps that draw noise
    trained     (B, S) bool: steps that are actions
    seed        (B,) long: rows of equal (prompt, seed) start from the same noise
    branch      (B,) long: rows of a group with equal numbers differ in one step's noise only (`one`), else 0
    """

    stochastic: Tensor
    trained: Tensor
    seed: Tensor
    branch: Tensor

    @property
    def first(self) -> Tensor:
        """(B,) the first stochastic step; S where there is none."""
        found = self.stochastic.any(1)
        return torch.where(found, self.stochastic.int().argmax(1), self.stochastic.shape[1])


def ode_plan(rows: int, steps: int, members: Tensor) -> StepPlan:
    """No action at all: the deterministic sampler, each member from its own noise."""
    none = torch.zeros(rows, steps, dtype=torch.bool)
    return StepPlan(none, none, members, torch.zeros_like(members))


def plan_steps(
    choice: TrainSteps, possible: Tensor, prompts: Sequence[str], members: Tensor, key: Key, same_noise: bool
) -> StepPlan:
    """The plan of B rollouts.

    possible  (S,) bool: steps that can have a log-prob
    prompts   B prompt ids; members (B,) long: place in the group, which keys the draws
    same_noise  all rollouts of a prompt start from one noise
    """
    seed = torch.zeros_like(members) if same_noise else members
    branch = torch.zeros_like(members)
    everywhere = possible.expand(len(members), -1)
    if choice.select == "all":
        return StepPlan(everywhere, everywhere, seed, branch)
    if choice.select == "fraction":
        rows = zip(prompts, members.tolist(), strict=True)
        trained = torch.stack([_share(possible, choice, key.at(prompt=p, member=m)) for p, m in rows])
        return StepPlan(everywhere, trained, seed, branch)
    if choice.select == "window":
        inside = torch.zeros_like(possible)
        start = window_start(choice, possible, key)
        inside[start : start + choice.size] = True
        inside[_besides(choice, possible)] = True
        inside = inside.expand(len(members), -1)
        return StepPlan(inside, inside, seed, branch)
    steps = possible.nonzero().squeeze(1)
    seed, place = members // rollouts_per_seed(choice, possible), members // choice.branches % len(steps)
    one = torch.nn.functional.one_hot(steps[place], len(possible)).bool()
    return StepPlan(one, one, seed, seed * len(possible) + steps[place])


def continued(plan: StepPlan, starts: Mapping[int, Start], prompts: Sequence[str]) -> StepPlan:
    """`plan` in which row r goes on from `starts[r]`: before that it draws nothing, and trains what the other did."""
    stochastic, trained, branch = plan.stochastic.clone(), plan.trained.clone(), plan.branch.clone()
    for row, start in starts.items():
        stochastic[row, : start.action] = False
        trained[row, : start.action] = start.row.mask[0, : start.action].cpu()
        if not bool(stochastic[row].any()):
            raise PolicyError(
                f"prompt {prompts[row]!r}: behind step {start.action} no noise is drawn, so a row that begins there "
                "would repeat the one it begins in; begin earlier"
            )
    return StepPlan(stochastic, trained, plan.seed, branch)


def rollouts_per_seed(choice: TrainSteps, possible: Tensor) -> int:
    """Rollouts that share a seed: group sizes are multiples of it. 1 but for `one`: steps x branches."""
    return int(possible.sum()) * choice.branches if choice.select == "one" else 1


def check_group_size(choice: TrainSteps, possible: Tensor, count: int) -> None:
    """Refuse a group that would leave a step with fewer branches than the others."""
    each = rollouts_per_seed(choice, possible)
    if count % each:
        nearest = max(each, round(count / each) * each)
        raise ConfigError(
            f"train_steps: {count} rollouts of a prompt are not a whole number of seeds, each "
            f"{int(possible.sum())} steps x {choice.branches} branches = {each} rollouts; choose {nearest}"
        )


def window_start(choice: TrainSteps, possible: Tensor, key: Key) -> int:
    """The first step of the window of training step `key.step`, the same for all prompts and ranks."""
    last = int(possible.nonzero().max()) + 1
    high = last if choice.high is None else choice.high
    if high > last or choice.low + choice.size > high or not bool(possible[choice.low : high].all()):
        raise ConfigError(
            f"train_steps: a window of {choice.size} steps in [{choice.low}, {high}) does not fit the trainable steps "
            f"{possible.nonzero().squeeze(1).tolist()}; lower size or low, or raise policy.steps"
        )
    places = high - choice.size - choice.low + 1
    if choice.order == "random":
        draw = Key(key.seed, key.step, purpose="window").uniform(1)
        return choice.low + int(draw * places)
    starts = range(choice.low, choice.low + places, choice.stride)
    stays = [training_steps(choice, start, starts[0], starts[-1]) for start in starts]
    step = key.step % sum(stays)
    return next(start for start, end in zip(starts, accumulate(stays), strict=True) if step < end)


def training_steps(choice: TrainSteps, start: int, first: int, last: int) -> int:
    """How many training steps the progressive window stays at `start`, of places from `first` to `last`.

    Source: Tencent-Hunyuan/MixGRPO, fastvideo/utils/grpo_states.py (its `iters_per_group` is `every`).
    """
    if choice.pace == "exp_decay":
        return math.ceil(choice.every * math.exp(-choice.rate * max(0, start - choice.hold)))
    if choice.pace == "decay" and last > first:
        share = (start - first) / (last - first)
        return max(1, round(choice.every + share * (choice.least - choice.every)))
    return choice.every


def _besides(choice: TrainSteps, possible: Tensor) -> list[int]:
    able = possible.nonzero().squeeze(1).tolist()
    if wrong := sorted(set(choice.also) - set(able)):
        raise ConfigError(f"train_steps.also: step {wrong[0]} cannot be trained; the trainable steps are {able}")
    return list(choice.also)


def _share(possible: Tensor, choice: TrainSteps, key: Key) -> Tensor:
    """(S,) bool: a random `fraction` of the possible steps."""
    steps = possible.nonzero().squeeze(1)
    count = int(choice.fraction * len(steps))
    if count < 1:
        raise ConfigError(
            f"train_steps.fraction={choice.fraction} of {len(steps)} trainable steps trains none; "
            f"choose at least {1 / len(steps):.3f}"
        )
    order = torch.randperm(len(steps), generator=key.at(purpose="trained steps").generator())
    chosen = torch.zeros_like(possible)
    chosen[steps[order[:count]]] = True
    return chosen
