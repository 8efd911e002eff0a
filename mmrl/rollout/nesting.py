"""Several strategies as one: the outer is consulted once the inner has nothing more to ask.

`rollout: [dynamic_sampling, guide]` asks for new prompts (outer) only for groups that stay flat after `guide` (inner)
has tried to rescue them, and the groups it adds pass through `guide` in their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Answer, Batch, Prompt, Rollouts, Stored
from mmrl.rollout.plan import Ask, Given, Plan, Step, Strategy, planned
from mmrl.stages import Bound, Need, registered

Rows = dict[tuple[int, int], bool]


def on_offer() -> dict[str, list[str]]:
    """{column: the strategies that make it}, of all that are registered."""
    offered: dict[str, list[str]] = {}
    for spec in registered("rollout"):
        for name in (*getattr(spec.function, "columns", {}), *getattr(spec.function, "made", ())):
            offered.setdefault(name, []).append(spec.name)
    return offered


@dataclass
class Nested:
    """`bounds`, outermost first; none at all is `independent`."""

    bounds: list[Bound]
    _masks: dict[int, tuple[Rows, Rows]] = field(default_factory=dict)
    _turns: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, choices: Any) -> Nested:
        several = [choices] if isinstance(choices, str | dict) else list(choices or ())
        bounds = [Bound.of("rollout", choice) for choice in several]
        names = [b.name for b in bounds]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ConfigError(f"rollout: {', '.join(sorted(twice))} stands twice in {names}; once is enough")
        declared: dict[str, str] = {}
        for bound in bounds:
            for column in cast(Strategy, bound.state).columns:
                if other := declared.get(column):
                    raise ConfigError(
                        f"rollout: {other} and {bound.name} both mark their rows by column {column!r}, so that each "
                        "would take the other's for its own; leave one of them out"
                    )
                declared[column] = bound.name
        if len(first := [b.name for b in bounds if _plans_first(b)]) > 1:
            raise ConfigError(
                f"rollout: {' and '.join(first)} each plan the first round of a step, and only that of {first[0]} "
                "would be asked for, which stands further out; leave one of them out"
            )
        return cls(bounds)

    @property
    def strategies(self) -> list[Strategy]:
        return [cast(Strategy, b.state) for b in self.bounds]

    @property
    def needs(self) -> dict[Need, list[str]]:
        asked: dict[Need, list[str]] = {}
        for bound in self.bounds:
            for need in bound.needs.values():
                asked.setdefault(need, []).append(f"rollout {bound.name!r}")
        return asked

    @property
    def columns(self) -> dict[str, float]:
        """Row constants of all of them, with their fills."""
        merged: dict[str, float] = {}
        for strategy in self.strategies:
            merged |= strategy.columns
        return merged

    def begin(self) -> None:
        """A step: what was of the one before is forgotten. Its first requests may have been asked for long ago."""
        self._masks, self._turns = {}, {}

    @property
    def entangled(self) -> list[str]:
        """Those that plan a first round of their own and go on from it: two steps of them cannot be under way at
        once."""
        return [
            b.name for b in self.bounds
            if _plans_first(b) and type(b.state).join is not Strategy.join and not cast(Strategy, b.state).apart
        ]  # fmt: skip

    def ask(self, step: Step) -> Plan:
        """The first requests: of the outermost that has any."""
        self.begin()
        for place, strategy in enumerate(self.strategies):
            plan = strategy.ask(step)
            if plan is not None:
                return self._signed(plan, place)
        return step.first()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """From the innermost outwards; the first that wants another round is heard. Each sees the masks of those
        inside it, and counts the rounds by its own turns: the outer's first may come after many of the inner's."""
        for place in reversed(range(len(self.bounds))):
            bound = self.bounds[place]
            seen = self.masked(batch, inside=place).seen_by({n: need.key for n, need in bound.needs.items()})
            turn = self._turns[place] = self._turns.get(place, 0) + 1
            plan = cast(Strategy, bound.state).join(seen, replace(step, round=turn))
            if plan is None:
                continue
            self._remember(place, plan, batch)
            if plan.asks:
                return self._signed(plan, place)
        return None

    def masked(self, batch: Batch, inside: int = -1) -> Batch:
        """`batch` without the rows that strategies further in than place `inside` took out."""
        counted, trained = batch.counted, batch.trained
        addresses = list(zip(batch.group.tolist(), batch.member.tolist(), strict=True))
        for place, (count, train) in self._masks.items():
            if place > inside:
                counted = counted & _of(count, addresses, counted)
                trained = trained & _of(train, addresses, trained)
        return replace(batch, counted=counted, trained=trained)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        return self.strategies[ask.by].shown(ask, prompt, rows)

    def usable(self, ask: Ask, prompt: Prompt, texts: list[str]) -> list[str]:
        return self.strategies[ask.by].usable(ask, prompt, texts)

    def heard(self, ask: Ask, texts: list[str]) -> None:
        self.strategies[ask.by].heard(ask, texts)

    @property
    def reads_texts(self) -> bool:
        """Whether any of them wants to know what was asked and answered, in words."""
        return any(s.reads_texts or s.reads_turns for s in self.strategies)

    @property
    def reads_turns(self) -> bool:
        """Whether any wants to know what each run of a row says."""
        return any(s.reads_turns for s in self.strategies)

    @property
    def besides(self) -> bool:
        """Whether any of them puts prompts beside those of the groups."""
        return any(type(s).beside is not Strategy.beside for s in self.strategies)

    def beside(self, prompt: Prompt, rows: Rollouts) -> dict[str, Prompt]:
        merged: dict[str, Prompt] = {}
        for strategy in self.strategies:
            merged |= strategy.beside(prompt, rows)
        return merged

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer] | list[Stored]:
        return self.strategies[given.by].given(given, prompt, rows)

    def reads(self, others: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """{column: its readers} of the objective, as `others` has it, and of the strategies."""
        read = {name: list(readers) for name, readers in others.items()}
        for bound in self.bounds:
            for name in bound.columns:
                read.setdefault(name, []).append(f"rollout {bound.name!r}")
        return read

    @property
    def makes(self) -> list[str]:
        """Every column that comes of one of them."""
        return [*self.columns, *(name for s in self.strategies for name in s.made)]

    def make(self, batch: Batch) -> Batch:
        """`batch` with the columns that come of whole groups."""
        columns = dict(batch.columns)
        for bound in self.bounds:
            seen = batch.seen_by({name: need.key for name, need in bound.needs.items()})
            columns |= cast(Strategy, bound.state).make(seen)
        return replace(batch, columns=columns)

    def group_members(self, group_size: int) -> int:
        """How many rollouts a group has once all of them had their say, as far as settings tell."""
        return reduce(lambda size, strategy: strategy.group_members(size), self.strategies, group_size)

    def counted(self) -> dict[str, float]:
        """{`strategy/name`: a number of the step}"""
        return {
            f"{bound.name}/{name}": value
            for bound in self.bounds for name, value in cast(Strategy, bound.state).counted().items()
        }  # fmt: skip

    def observe(self, batch: Batch, step: Step) -> None:
        for bound in self.bounds:
            aliases = {name: need.key for name, need in bound.needs.items()}
            cast(Strategy, bound.state).observe(batch.seen_by(aliases), step)

    def state_dict(self) -> dict[str, Any]:
        return {b.name: cast(Strategy, b.state).state_dict() for b in self.bounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for bound in self.bounds:
            if bound.name in state:
                cast(Strategy, bound.state).load_state_dict(state[bound.name])

    def _signed(self, plan: Plan, place: int) -> Plan:
        """Who planned it, and no column or kind of row that it did not declare."""
        strategy = self.strategies[place]
        declared = strategy.columns
        rows: list[Ask | Given] = [*(a for a in plan.ask if not a.aside), *plan.given]
        if strategy.origins is not None and (new := [o for o in map(planned, rows) if o not in strategy.origins]):
            raise ConfigError(
                f"rollout {self.bounds[place].name!r} plans rows of an origin that it does not declare in `origins`: "
                f"{new[0]}"
            )
        for columns in [a.columns for a in plan.ask] + [g.columns for g in plan.given]:
            if unknown := columns.keys() - declared.keys():
                raise ConfigError(
                    f"rollout {self.bounds[place].name!r} sets the column {sorted(unknown)[0]!r}, which it does not "
                    f"declare in `columns`; it declares: {', '.join(declared) or 'none'}"
                )
        return replace(
            plan,
            ask=cast(Sequence[Ask], [replace(a, by=place) for a in plan.ask]),
            given=cast(Sequence[Given], [replace(g, by=place) for g in plan.given]),
        )

    def _remember(self, place: int, plan: Plan, batch: Batch) -> None:
        addresses = list(zip(batch.group.tolist(), batch.member.tolist(), strict=True))
        before = self._masks.get(place, ({}, {}))
        new = [
            old if mask is None else dict(zip(addresses, mask.tolist(), strict=True))
            for mask, old in zip((plan.counted, plan.trained), before, strict=True)
        ]
        self._masks[place] = (new[0], new[1])


def _plans_first(bound: Bound) -> bool:
    return type(bound.state).ask is not Strategy.ask


def _of(known: Rows, addresses: Iterable[tuple[int, int]], like: Tensor) -> Tensor:
    return torch.tensor([known.get(a, True) for a in addresses], dtype=torch.bool, device=like.device)
