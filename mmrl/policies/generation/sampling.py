"""Denoising many rollouts at once: shared ODE prefixes, keyed noise, and what training needs of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.pushing import Push, Seen
from mmrl.policies.generation.reuse import ReuseConfig, moves_together
from mmrl.policies.generation.sde import Scoring, predicted_clean, sde_step, transition_log_prob
from mmrl.policies.generation.steps import StepPlan
from mmrl.policies.generation.tail import solve, tail_times
from mmrl.randomness import Key
from mmrl.record import Start
from mmrl.stages import Need

STORED = ("latents", "means", "pushed", "without")
"""What a rollout keeps of its states, where the policy wants them kept (`policy.latents_on`)."""
WORTH = Need("process_reward").key
"""The column that keeps what the push's reward says of a step."""
Watch = Callable[[int, Tensor, Tensor, Tensor], None]
"""(step, rows (N,), states (N, ...), velocities (N, ...)): told of every step."""
Velocity = Callable[..., Tensor]
"""(x (N, ...), t (N,), conditions of N rows) -> velocity (N, ...); with `again` where blocks are reused"""


def stored(kept: Tensor, rows: Tensor, column: Tensor) -> Tensor:
    """(N, ...) of `kept (B, L, ...)`, wherever it lies, on the device of the rows."""
    return kept[rows.to(kept.device), column.to(kept.device)].to(rows.device)


@dataclass
class Sampled:
    """What the sampler leaves behind.

    final      (B, ...) the clean latents
    first      (B,) the first trained step; S where there is none
    latents    (B, L, ...) in storage dtype: column j holds the state before step `first + j`
    means      (B, L, ...) float32 means of the trained steps, where kept; pushed: those that noise was drawn around;
               without: what the unconditional pass found there
    log_probs  (B, S) of the trained steps, 0 elsewhere
    worth      (B, S) what the push's reward says of the state behind each stochastic step, 0 elsewhere
    """

    final: Tensor
    first: Tensor
    latents: Tensor
    means: Tensor | None
    log_probs: Tensor
    worth: Tensor
    pushed: Tensor | None = None
    without: Tensor | None = None


def initial_noise(key: Key, prompt: str, seed: int, shape: Sequence[int]) -> Tensor:
    """The start of the trajectory `seed` of a prompt."""
    return key.at(prompt=prompt, member=seed, purpose="initial").normal(*shape)


def step_noise(key: Key, prompt: str, member: int, step: int, shape: Sequence[int]) -> Tensor:
    return key.at(prompt=prompt, member=member, purpose=f"noise {step}").normal(*shape)


@dataclass
class Group:
    """B rollouts to sample: prompt ids, members, and what they are conditioned on.

    starts  {row: where it begins in another}; its plan draws no noise before that
    tail    share of the steps behind the last noise that are taken, by a better solver (`tail`); None: all of them
    push    what moves the means that noise is drawn around, and not those it is scored by (`pushing`)
    reuse   which steps that train nothing reuse blocks of the step before (`reuse`); None: none
    siblings  how far rows that leave a state draw apart (`Sampler.siblings`); None: independently
    """

    prompts: list[str]
    members: Tensor
    conditioned: Conditioned
    plan: StepPlan
    starts: Mapping[int, Start] = field(default_factory=dict)
    tail: float | None = None
    push: Push | None = None
    reuse: ReuseConfig | None = None
    siblings: float | None = None

    def noise(self, row: int, step: int, key: Key, shape: Sequence[int]) -> Tensor:
        """What a row draws at a step: unit noise, alike that of the row it leaves there by 1 / (1 + siblings^2)."""
        prompt, start = self.prompts[row], self.starts.get(row)
        own = step_noise(key, prompt, int(self.members[row]), step, shape)
        if self.siblings is None or start is None or start.action != step or start.row.owner is None:
            return own
        drawer = int(start.row.owner[0, step])
        if drawer < 0:  # the other draws none here
            return own
        alike = 1 / (1 + self.siblings**2)
        return alike * step_noise(key, prompt, drawer, step, shape) + math.sqrt(1 - alike**2) * own

    def again(self, step: int, who: Tensor, before: Tensor | None) -> dict[str, Any]:
        """How `velocity` is asked for the rows `who` of a step, where blocks are reused at all."""
        if self.reuse is None:
            return {}
        reuse, steps = self.reuse, self.plan.stochastic.shape[1]
        allowed = reuse.drawn or not bool(self.plan.stochastic[:, step].any())
        allowed = allowed and moves_together(who, before)
        return {
            "again": None if reuse.every is None else allowed and reuse.reused(step, steps),
            "text": None if reuse.text is None else allowed and reuse.text_reused(step, steps),
            "threshold": reuse.threshold,
        }


def state_at(start: Start, prompt: str) -> Tensor:
    """(...) the stored state before step `start.action`; PolicyError where the row kept none."""
    row, column = start.row, start.action - int(start.row.replay["first"][0])
    kept = row.replay["latents"].shape[1]
    if not 0 <= column < kept or not bool(row.mask[0, : start.action].any()):
        first = int(row.replay["first"][0])
        raise PolicyError(
            f"prompt {prompt!r}: a row cannot begin before step {start.action} of another, which kept its states "
            f"before steps {first} to {first + kept - 1}, those that policy.train_steps trains; choose one of "
            f"{first + 1} to {first + kept - 1}, or policy.train_steps.select=all"
        )
    return row.replay["latents"][0, column]


@torch.no_grad()
def sample(
    group: Group, velocity: Velocity, times: Tensor, scoring: Scoring, key: Key, shape: Sequence[int],
    storage: torch.dtype, *, share_prefix: bool = True, keep: Sequence[str] = (), watch: Watch | None = None,
    home: torch.device | None = None,
) -> Sampled:  # fmt: skip
    """Denoise a group along `times (S + 1,)`.

    Rows of equal (conditions, seed) are one trajectory until their first noise: with `share_prefix` it is computed once
    and its rows leave it at their first stochastic step, each with its own noise. Every state is rounded to
    `storage` before it is scored, so that training reads the very numbers the log-prob was taken at.

    keep  "means" and "without" of trained steps, see `Sampled`
    home  where stored states and what is kept beside them lie; None: where they are computed
    """
    device, plan = times.device, group.plan
    steps = len(times) - 1
    trunk_of, owners = _trunks(group)
    noise = [initial_noise(key, group.prompts[o], int(plan.seed[o]), shape) for o in owners.tolist()]
    trunk = _stored(torch.stack(noise).to(device), storage)
    start = plan.first.clone() if share_prefix else torch.zeros_like(plan.first)
    begun = torch.tensor(sorted(group.starts), dtype=torch.long)
    start[begun] = 0  # they need no trunk
    stop = torch.zeros(len(owners), dtype=torch.long).scatter_reduce_(0, trunk_of, start, "amax")
    x = trunk[trunk_of.to(device)]
    kept = [*keep, *(["pushed"] if group.push is not None and group.push.config.keep else [])]
    record = _Record(plan, shape, storage, kept, device, home or device)
    for row, begin in group.starts.items():
        start[row], x[row] = begin.action, _stored(state_at(begin, group.prompts[row]).to(device), storage)
        record.taken_over(row, begin)
    body = steps if group.tail is None else int(plan.stochastic.any(0).nonzero().max()) + 1
    before: Tensor | None = None
    for i in range(body):
        joining = (start == i).nonzero().squeeze(1)
        joining = joining[~torch.isin(joining, begun)]
        x[joining.to(device)] = trunk[trunk_of[joining].to(device)]
        rows, moving = (start <= i).nonzero().squeeze(1), (stop > i).nonzero().squeeze(1)
        if not len(rows) + len(moving):  # all begin later in others
            continue
        states = torch.cat([x[rows.to(device)], trunk[moving.to(device)]])
        who = torch.cat([rows, owners[moving]])
        again = group.again(i, who, before)
        without = torch.empty_like(states) if "without" in kept and bool(plan.trained[rows, i].any()) else None
        again |= {} if without is None else {"without": without}
        v, before = velocity(states, times[i].expand(len(states)), group.conditioned.rows(who), **again), who
        if watch is not None and not (again.get("again") or again.get("text")):
            watch(i, who, states, v)
        ode = _stored(sde_step("ode", v, states, times[i], times[i + 1], 0.0, times[1]).mean, storage)
        trunk[moving.to(device)] = ode[len(rows) :]
        following = ode[: len(rows)]
        drawn = plan.stochastic[rows, i].nonzero().squeeze(1)
        if len(drawn):
            at = drawn.to(device)
            mean, std = sde_step(scoring.kind, v[at], states[at], times[i], times[i + 1], scoring.at(i), times[1])
            drawers = rows[drawn].tolist()
            draws = [group.noise(b, i, key, shape) for b in drawers]
            around = mean
            if group.push is not None:
                ids, h = [group.prompts[b] for b in drawers], times[i] - times[i + 1]
                seen = Seen(v[at], group.conditioned.rows(rows[drawn]), group.members[rows[drawn]].tolist())
                around = mean + group.push.shift(i, states[at], times[i], h, ids, seen)
            following[at] = _stored(around + std * torch.stack(draws).to(device), storage)
            if group.push is not None:
                record.worth[rows[drawn], i] = group.push.worth(following[at], times[i + 1], ids, seen).cpu()
            log_probs = transition_log_prob(following[at], mean, std, scoring.reduction, scoring.normalised)
            assert log_probs is not None
            found = {"means": mean, "pushed": around} | ({} if without is None else {"without": without[at]})
            record.transitions(i, rows[drawn], log_probs, found)
        record.states(i, rows, states[: len(rows)], following)
        x[rows.to(device)] = following
    if body < steps:
        x = solve(x, group.conditioned, velocity, tail_times(times, body, group.tail or 1.0))
        return record.sampled(x)
    late = (start == steps).nonzero().squeeze(1)
    x[late.to(device)] = trunk[trunk_of[late].to(device)]
    return record.sampled(x)


@torch.no_grad()
def finish(states: Tensor, start: Tensor, conditioned: Conditioned, velocity: Velocity, times: Tensor) -> Tensor:
    """(N, ...) clean latents the ODE leads to from `states (N, ...)`, each before its step `start (N,)`."""
    x = states.float().clone()
    for i in range(int(start.min()), len(times) - 1):
        rows = (start <= i).nonzero().squeeze(1)
        v = velocity(x[rows], times[i].expand(len(rows)), conditioned.rows(rows))
        x[rows] = sde_step("ode", v, x[rows], times[i], times[i + 1], 0.0, times[1]).mean
    return x


def project(states: Tensor, start: Tensor, conditioned: Conditioned, velocity: Velocity, times: Tensor) -> Tensor:
    """(N, ...) clean latents that the velocity at `states (N, ...)` points to, each before its step `start (N,)`."""
    clean = states.float().clone()
    for i in sorted(set(start.tolist())):
        rows = (start == i).nonzero().squeeze(1)
        v = velocity(clean[rows], times[i].expand(len(rows)), conditioned.rows(rows))
        clean[rows] = predicted_clean(v, clean[rows], times[i])
    return clean


PROJECTIONS = {"ode": finish, "one_step": project}
"""How a state becomes an output: by the remaining steps, or by one."""


def _trunks(group: Group) -> tuple[Tensor, Tensor]:
    """(B,) which trajectory a row starts on, and the first row of each: equal conditions, prompt and seed are one."""
    seen: dict[tuple[int, str, int], int] = {}
    owners: list[int] = []
    trunk_of = []
    identity = zip(group.conditioned.index.tolist(), group.prompts, group.plan.seed.tolist(), strict=True)
    for row, who in enumerate(identity):
        if who not in seen:
            seen[who] = len(owners)
            owners.append(row)
        trunk_of.append(seen[who])
    return torch.tensor(trunk_of), torch.tensor(owners)


def _stored(x: Tensor, storage: torch.dtype) -> Tensor:
    """What remains of float32 latents after a round trip through the storage dtype."""
    return x.to(storage).float()


class _Record:
    """Collects the states around trained steps."""

    def __init__(
        self, plan: StepPlan, shape: Sequence[int], storage: torch.dtype, kept: Sequence[str], device: torch.device,
        home: torch.device,
    ):  # fmt: skip
        """kept  "means" that steps are scored by, "pushed" ones that noise was drawn around, "without" guidance"""
        rows, steps = plan.trained.shape
        column = torch.arange(steps)
        trained = plan.trained.any(1)
        self.plan = plan
        self.first = torch.where(trained, plan.trained.int().argmax(1), steps)
        last = torch.where(trained, (plan.trained * column).amax(1), steps - 1)
        self.width = int((last - self.first).max()) + 2
        self.latents = torch.zeros(rows, self.width, *shape, dtype=storage, device=home)
        self.kept = {name: torch.zeros(rows, self.width, *shape, device=home) for name in kept}
        self.log_probs = torch.zeros(rows, steps, device=device)
        self.worth = torch.zeros(rows, steps)

    def sampled(self, final: Tensor) -> Sampled:
        means, pushed, without = (self.kept.get(name) for name in ("means", "pushed", "without"))
        return Sampled(final, self.first, self.latents, means, self.log_probs, self.worth, pushed, without)

    def states(self, step: int, rows: Tensor, before: Tensor, after: Tensor) -> None:
        """The states `before` and `after` a step; a row keeps the columns that its trained steps touch."""
        for states, offset in ((before, step), (after, step + 1)):
            column = offset - self.first[rows]
            kept = ((column >= 0) & (column < self.width)).nonzero().squeeze(1)
            at = (rows[kept].to(self.latents.device), column[kept].to(self.latents.device))
            self.latents[at] = states[kept.to(states.device)].to(self.latents)

    def taken_over(self, row: int, begin: Start) -> None:
        """What `row` shares with the one it begins in: states before its start, means and log-probs of its steps."""
        first, theirs = int(self.first[row]), int(begin.row.replay["first"][0])
        for step in range(first, begin.action):
            self.latents[row, step - first] = begin.row.replay["latents"][0, step - theirs].to(self.latents)
            for name, kept in self.kept.items():
                kept[row, step - first] = begin.row.replay[name][0, step - theirs].to(kept)
        self.log_probs[row, : begin.action] = begin.row.old_log_probs[0, : begin.action].to(self.log_probs)
        if (column := begin.row.columns.get(WORTH)) is not None:
            self.worth[row, : begin.action] = column[0, : begin.action].to(self.worth)

    def transitions(self, step: int, rows: Tensor, log_probs: Tensor, found: Mapping[str, Tensor]) -> None:
        """What a step drew of `rows`, and what was found there of all that is kept."""
        trained = self.plan.trained[rows, step].nonzero().squeeze(1)
        at = trained.to(log_probs.device)
        where = rows[trained].to(log_probs.device)
        self.log_probs[where, step] = log_probs[at]
        for name, kept in self.kept.items() if len(trained) else ():
            home, column = kept.device, step - self.first[rows[trained]]
            kept[where.to(home), column.to(home)] = found[name][at].to(home)
