"""One objective for each kind of action of a row: `objective: {kinds: {tokens: {...}, transition: {...}}}`.

Shaping, group selection, the learning rate and an advantage that stands above all kinds are of the whole row. Credit,
ratio, trust region, aggregation and regularizers are of a kind, and so is an advantage that it names: they see its
actions side by side, as if the rows held nothing else, and its loss is added with its coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.batch import KINDS, Batch, Evaluation
from mmrl.errors import ConfigError, finite, unknown
from mmrl.kinds import KIND, Places
from mmrl.objective.config import ObjectiveConfig
from mmrl.objective.objective import Loss, Objective
from mmrl.settings import read_section
from mmrl.stages import Bound

WHOLE = ("kinds", "shaping", "group", "learning_rate")
"""Of the whole row: no kind has its own."""


@dataclass
class Part:
    """A kind's objective, and what its loss counts beside the others'."""

    objective: Objective
    coefficient: float


@dataclass
class MixedObjective(Objective):
    """parts  by kind"""

    parts: dict[str, Part] = field(default_factory=dict)

    @classmethod
    def made(cls, config: ObjectiveConfig) -> MixedObjective:
        stages = config.model_dump()
        parts = {kind: _part(kind, own, stages) for kind, own in config.kinds.items()}
        whole = Objective.of(config.model_copy(update={"kinds": {}}))
        for kind, part in parts.items():
            if "advantage" not in config.kinds[kind]:
                part.objective.advantage = whole.advantage
        each = [part.objective for part in parts.values()]
        if whole.score_objective or any(own.score_objective for own in each):
            raise ConfigError("objective.kinds: a score_objective judges whole rows; it has no kinds")
        together = {name: [b for own in each for b in getattr(own, name)] for name in ("credit", "regularizers")}
        return cls(**vars(whole) | together, parts=parts)

    @property
    def kinds(self) -> dict[str, Objective]:
        return {kind: part.objective for kind, part in self.parts.items()}

    @property
    def acting(self) -> list[Bound]:
        return [bound for own in self.kinds.values() for bound in own.acting]

    @property
    def stages(self) -> list[Bound]:
        whole = [*self.shaping, *self.group, *([self.learning_rate] if self.learning_rate else [])]
        every = [*whole, *(bound for own in self.kinds.values() for bound in own.stages)]
        return list({id(bound): bound for bound in every}.values())  # kinds may share the advantage

    @property
    def columns(self) -> dict[str, list[str]]:
        return super().columns | {KIND: ["objective.kinds"]}

    # ---- prepare

    @torch.no_grad()
    def assess(self, batch: Batch) -> Batch:
        if batch.advantage is None:
            advantage = torch.zeros_like(batch.old_log_probs)
            trained = torch.zeros_like(batch.trained)  # type: ignore[arg-type]
            whole: Batch | None = None
            for _, part, places in self._each(batch):
                if part.objective.advantage is self.advantage:
                    assessed = whole = whole or self.judged(batch)
                    own = places.take(assessed.advantage)  # type: ignore[arg-type]
                else:
                    assessed = part.objective.assess(places.of_batch(batch))
                    own = assessed.advantage  # type: ignore[assignment]
                advantage = advantage + places.put(own).to(advantage)
                trained |= assessed.trained  # type: ignore[arg-type]
            batch = replace(batch, advantage=advantage, trained=trained)
        return super().assess(batch)

    @torch.no_grad()
    def credit_and_weigh(self, batch: Batch) -> tuple[Batch, Tensor]:
        diagnostics: dict[str, float] = {}
        made: dict[str, Tensor] = {}
        advantage, loss_mask, weights = (torch.zeros_like(batch.old_log_probs) for _ in range(3))
        for kind, part, places in self._each(batch):
            some = places.of_batch(batch)
            own, weighed = part.objective.credit_and_weigh(some)
            assert own.advantage is not None and own.loss_mask is not None
            advantage = advantage + places.put(own.advantage).to(advantage)
            loss_mask = loss_mask + places.put(own.loss_mask.to(loss_mask))
            weights = weights + places.put(weighed).to(weights)
            new = {name: value for name, value in own.columns.items() if value is not some.columns.get(name)}
            shape = some.mask.shape
            made |= {f"{kind}: {n}": places.put(v) if v.shape[:2] == shape else v for n, v in new.items()}
            diagnostics |= {f"{kind}/{name}": value for name, value in part.objective.diagnostics.items()}
        self.diagnostics = diagnostics
        return replace(batch, advantage=advantage, loss_mask=loss_mask, columns={**batch.columns, **made}), weights

    def has_signal(self, batch: Batch) -> Tensor:
        signal = torch.zeros_like(batch.trained)  # type: ignore[arg-type]
        for _, part, places in self._each(batch):
            signal |= part.objective.has_signal(places.of_batch(batch))
        return signal

    # ---- loss

    def loss(self, evaluation: Evaluation, batch: Batch, weights: Tensor, coefficients: Tensor | None = None) -> Loss:
        """The kinds' losses with their coefficients; numbers of each kind by `kind/name`, and of all by name."""
        loss, sums = weights.new_zeros(()), dict[str, tuple[Tensor, Tensor]]()
        for kind, part, places in self._each(batch):
            some = places.of_batch(batch)
            own = {n.removeprefix(f"{kind}: "): v for n, v in some.columns.items() if n.startswith(f"{kind}: ")}
            some = replace(some, columns={**some.columns, **own})
            share = part.objective.loss(places.of_evaluation(evaluation), some, places.take(weights))
            loss = loss + part.coefficient * share.loss
            for name, (value, count) in share.sums.items():
                before = sums.get(name, (torch.zeros_like(value), torch.zeros_like(count)))
                sums[name] = before[0] + value, before[1] + count
                sums[f"{kind}/{name}"] = value, count
        return Loss(loss, sums)

    def _each(self, batch: Batch) -> list[tuple[str, Part, Places]]:
        """The kinds that rows of this batch hold."""
        if KIND not in batch:
            raise ConfigError(
                "objective.kinds reads the column kind (B, T), which these rollouts do not carry; "
                f"they carry: {', '.join(sorted(batch.columns)) or 'no further columns'}"
            )
        column = batch[KIND]
        other = (batch.mask & ~torch.isin(column, torch.tensor([KINDS.index(k) for k in self.parts]).to(column))).any()
        if other:
            numbers = sorted({int(n) for n in column[batch.mask].tolist()})
            named = ", ".join(KINDS[n] if 0 <= n < len(KINDS) else str(n) for n in numbers)
            raise ConfigError(f"objective.kinds has {', '.join(self.parts)}, and these rollouts hold {named}")
        places = {kind: Places.of(column, KINDS.index(kind)) for kind in self.parts}
        return [(kind, self.parts[kind], place) for kind, place in places.items() if bool(place.here.any())]

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        whole = {f"{b.spec.stage}/{b.name}": b.state.state_dict() for b in self._of_the_row if b.state is not None}
        return whole | {f"kinds/{kind}": own.state_dict() for kind, own in self.kinds.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for bound in self._of_the_row:
            key = f"{bound.spec.stage}/{bound.name}"
            if bound.state is not None and key in state:
                bound.state.load_state_dict(state[key])
        for kind, own in self.kinds.items():
            own.load_state_dict(state.get(f"kinds/{kind}", {}))

    @property
    def _of_the_row(self) -> list[Bound]:
        return [b for b in (*self.shaping, *self.group, self.learning_rate) if b and hasattr(b.state, "state_dict")]


def _part(kind: str, own: Mapping[str, Any], stages: Mapping[str, Any]) -> Part:
    if kind not in KINDS:
        raise ConfigError(f"objective.kinds: {unknown('kind of action', kind, KINDS)}")
    own = dict(own)
    coefficient = finite(own.pop("coefficient", 1.0), f"objective.kinds.{kind}.coefficient")
    if whole := [name for name in WHOLE if name in own]:
        raise ConfigError(f"objective.kinds.{kind}: {whole[0]} is of the whole row: set objective.{whole[0]}")
    shared = {name: value for name, value in stages.items() if name not in WHOLE}
    config = read_section(ObjectiveConfig, shared | own, f"objective.kinds.{kind}")
    return Part(Objective.of(config), coefficient)


Objective.of_kinds = MixedObjective.made
