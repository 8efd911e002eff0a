"""Composes the stages into one loss. Two phases:

    prepare  without gradient, on the rollout batch of all ranks: shaping, group, advantage, credit, weights
    loss     per micro-batch, with gradient: ratio, trust region, regularizers

`weights` hold every denominator of the optimizer step, so micro-batch losses add up and nothing divides again.
`compute` runs both on plain tensors: bring the objective into your own loop with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.columns import ways_to
from mmrl.errors import ConfigError, finite, got
from mmrl.objective.config import Choice, ObjectiveConfig, split_shared
from mmrl.objective.groups import degenerate, group_count
from mmrl.objective.numerics import at_least_float32
from mmrl.objective.prefixes import leaves
from mmrl.record import Batch, Evaluation, Selection
from mmrl.settings import read_section
from mmrl.stages import Bound, Need

CHANGED = 1e-5
"""Relative difference from the gradient of advantage times ratio from which on a trust region has acted."""


@dataclass
class Regularizer:
    """A penalty, its coefficient, and its own aggregation where it has one.

    place  where its weights stand among the batch's columns
    """

    bound: Bound
    coefficient: float
    aggregation: Bound | None
    place: str

    @classmethod
    def of(cls, choice: Choice, index: int) -> Regularizer:
        described = dict(choice) if isinstance(choice, dict) else {}
        who = f"regularizer {got(choice)}"
        if "coefficient" not in described:
            raise ConfigError(f"{who}: give it a coefficient, as in {{name: kl, coefficient: 0.04}}")
        coefficient = finite(described["coefficient"], f"{who}: coefficient")
        own = described.pop("aggregation", None)
        bound = Bound.of("regularizer", described)
        aggregation = None if own is None else Bound.of("aggregation", own)
        return cls(bound, coefficient, aggregation, f"weights of regularizer {index}")


@dataclass
class Loss:
    """One micro-batch's share of the loss, and sums for the metrics: {name: (sum, count)}."""

    loss: Tensor
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Objective:
    """The stage functions of a recipe, bound to their hyper-parameters."""

    shaping: list[Bound]
    group: list[Bound]
    advantage: Bound
    credit: list[Bound]
    ratio: Bound
    trust_region: Bound
    aggregation: Bound
    regularizers: list[Regularizer]
    score: Bound | None = None
    score_objective: Bound | None = None
    matching_objective: Bound | None = None
    policy_weight: float = 0.0
    learning_rate: Bound | None = None
    shared: str = "each"
    diagnostics: dict[str, float] = field(default_factory=dict)
    of_kinds: ClassVar[Callable[[ObjectiveConfig], Objective] | None] = None
    """For rows of several kinds of actions: `mmrl.objective.mixed` builds on this class, and says so here."""

    @property
    def kinds(self) -> dict[str, Objective]:
        """The objective of each kind of action, where rows hold several."""
        return {}

    @classmethod
    def of(cls, config: ObjectiveConfig | Mapping[str, Any]) -> Objective:
        if not isinstance(config, ObjectiveConfig):
            config = read_section(ObjectiveConfig, dict(config), "objective")
        assert isinstance(config, ObjectiveConfig)
        if config.kinds:
            assert cls.of_kinds is not None
            return cls.of_kinds(config)

        def one(stage: str) -> Bound | None:
            choice = getattr(config, stage)
            return Bound.of(stage, choice) if choice is not None else None

        aggregation, shared = split_shared(config.aggregation)

        def many(stage: str) -> list[Bound]:
            return [Bound.of(stage, choice) for choice in getattr(config, stage)]

        regularizers = [Regularizer.of(choice, i) for i, choice in enumerate(config.regularizers)]
        objective = cls(
            many("shaping"), many("group"), one("advantage"), many("credit"), one("ratio"), one("trust_region"),
            Bound.of("aggregation", aggregation), regularizers, one("score"), one("score_objective"),
            one("matching_objective"), config.policy_weight, one("learning_rate"), shared,
        )  # fmt: skip
        objective._check({k for k, f in ObjectiveConfig.model_fields.items() if getattr(config, k) != f.default})
        return objective

    def _check(self, chosen: set[str]) -> None:
        """Refuse combinations in which a part would have no effect; `chosen`: keys not at their defaults."""
        if (self.score is None) != (self.score_objective is None):
            raise ConfigError("a whole-sequence objective needs both `score` and `score_objective`")
        if self.score_objective and self.matching_objective:
            raise ConfigError("choose score_objective or matching_objective, not both")
        if not 0 <= self.policy_weight < 1 or (self.policy_weight and not self.score_objective):
            raise ConfigError(
                f"policy_weight is {self.policy_weight:g}; expected 0 <= policy_weight < 1, beside a score_objective"
            )
        self._check_grain()
        replaced = {} if self.policy_weight else self._replaced()
        for key in sorted(chosen & replaced.keys()):
            if getattr(self, key):
                raise ConfigError(f"{replaced[key]}, so {key} {self._names(key)} would have no effect: remove one")

    def _check_grain(self) -> None:
        """Where all actions of a row share one gradient, credit that tells them apart would be averaged away."""
        region = self.trust_region.spec
        owner = self.ratio if region.grain == "ratio" else self.trust_region
        if owner.spec.grain != "row" or self.score_objective or self.matching_objective:
            return
        for bound in (self.advantage, *self.credit):
            if bound.spec.grain == "action":
                shared = f"{owner.spec.stage.replace('_', ' ')} {owner.name!r}"
                raise ConfigError(
                    f"{shared} gives every action of a row the same gradient, so {bound.spec.stage} {bound.name!r}, "
                    "which tells actions apart, would be averaged away: use ratio 'token' or 'gspo_token'"
                )

    def _replaced(self) -> dict[str, str]:
        """Stages that a whole-sequence or matching objective takes the place of, and why."""
        if self.score_objective:
            why = f"score_objective {self.score_objective.name!r} judges whole sequences"
            return dict.fromkeys(("credit", "ratio", "trust_region"), why)
        if self.matching_objective:
            why = f"matching_objective {self.matching_objective.name!r} compares predictions, not probabilities"
            return dict.fromkeys(("ratio", "trust_region"), why)
        return {}

    def _names(self, key: str) -> str:
        bounds = getattr(self, key)
        return ", ".join(b.name for b in (bounds if isinstance(bounds, list) else [bounds]))

    @property
    def acting(self) -> list[Bound]:
        """What the update calls for each micro-batch, regularizers included."""
        if self.matching_objective:
            policy = [self.matching_objective]
        elif self.score_objective and not self.policy_weight:
            policy = []
        else:
            policy = [self.ratio, self.trust_region]
        whole = [b for b in (self.score, self.score_objective) if b]
        return [*policy, *whole, *(r.bound for r in self.regularizers)]

    @property
    def stages(self) -> list[Bound]:
        own = [b for b in (self.learning_rate, *(r.aggregation for r in self.regularizers)) if b]
        prepared = [*self.shaping, *self.group, *self.credit, self.advantage, self.aggregation, *own]
        return [*prepared, *self.acting]

    @property
    def needs(self) -> dict[Need, list[str]]:
        """Every declared need, and the functions that asked for it."""
        asked: dict[Need, list[str]] = {}
        for bound in self.stages:
            for need in bound.needs.values():
                asked.setdefault(need, []).append(f"{bound.spec.stage} {bound.name!r}")
        return asked

    @property
    def columns(self) -> dict[str, list[str]]:
        """Every column of the rollouts and rewards that is read, and its readers."""
        read: dict[str, list[str]] = {}
        for bound in self.stages:
            for name in bound.columns:
                read.setdefault(name, []).append(f"{bound.spec.stage} {bound.name!r}")
        return read

    # ---- prepare: no gradient, the rollout batch of all ranks

    @torch.no_grad()
    def select(self, batch: Batch, after_advantage: bool = False) -> tuple[Batch, list[Selection]]:
        """Stage 4. Functions of scope "batch" whose class says `after_advantage` run behind stage 5."""
        selections = []
        for bound in self.group:
            if getattr(bound.spec.function, "after_advantage", False) != after_advantage:
                continue
            _require(bound, batch)
            selection = bound(batch)
            changes = {n: getattr(selection, n) for n in ("counted", "trained", "update")}
            batch = replace(batch, **{n: v for n, v in changes.items() if v is not None})
            selections.append(selection)
        return batch, selections

    @torch.no_grad()
    def shape(self, batch: Batch) -> Batch:
        """Stage 3's end: the reward as stage functions reshape it. Unscored rows leave the baseline and the loss.

        A batch that brings its advantage has this behind it.
        """
        for bound in self.shaping if batch.advantage is None else ():
            _require(bound, batch)
            batch = replace(batch, reward=bound(batch))
        return _drop_unscored(batch)

    @torch.no_grad()
    def shape_and_select(self, batch: Batch) -> tuple[Batch, list[Selection]]:
        """Stages 3 and 4. A batch that brings its advantage is neither shaped nor selected again."""
        given = batch.advantage is not None
        batch = self.shape(batch)
        return (batch, []) if given else self.select(batch)

    @torch.no_grad()
    def assess(self, batch: Batch) -> Batch:
        """Stage 5, and the selections that read advantages.

        Groups with a single counted member leave the loss where the advantage compares rollouts of a prompt. An
        advantage that is already set, `(B,)` or `(B, T)`, is kept.
        """
        return self.select(self.judged(batch), after_advantage=True)[0]

    def judged(self, batch: Batch) -> Batch:
        """Stage 5 alone."""
        if batch.advantage is None:
            if self.advantage.spec.relative:
                alone = group_count(batch.group, batch.counted) < 2
                batch = replace(batch, trained=batch.trained & ~alone)
            batch = replace(batch, advantage=self._advantage(batch))
        return replace(batch, advantage=_per_action(batch.advantage, batch))

    @torch.no_grad()
    def credit_and_weigh(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Stages 6 and 9: the batch with the advantage and loss mask of each action, and `weights (B, T)`."""
        self.diagnostics = _selected(batch)
        for bound in self.credit:
            if bound.spec.phase == "prepare":
                _require(bound, batch)
                before = batch
                advantage, loss_mask = bound(batch.advantage, batch)
                batch = replace(batch, advantage=advantage * batch.mask, loss_mask=loss_mask * batch.mask)
                sums = _credited(bound.name, before.advantage, batch.advantage, batch)
                self.diagnostics |= {name: float(a / b.clamp(min=1)) for name, (a, b) in sums.items()}
        for bound in self.acting:
            _require(bound, batch)
            if columns := bound.prepare(batch):
                batch = replace(batch, columns={**batch.columns, **columns})
        own = {r.place: self.weights(batch, r.aggregation) for r in self.regularizers if r.aggregation}
        return replace(batch, columns={**batch.columns, **own}), self.weights(batch)

    def _advantage(self, batch: Batch) -> Tensor:
        if batch.reward is None:
            present = sorted({*batch.columns, *batch.components})
            raise ConfigError(
                f"advantage {self.advantage.name!r} reads `reward (B,)`, which this batch lacks; give it, or a "
                f"precomputed `advantage`. Further columns: {', '.join(present) or 'none'}"
            )
        _require(self.advantage, batch)
        return self.advantage(batch)

    def prepare(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Stages 3 to 6 and 9 in one go, for a batch that is complete."""
        batch, _ = self.shape_and_select(batch)
        return self.credit_and_weigh(self.assess(batch))

    def weights(self, batch: Batch, aggregation: Bound | None = None) -> Tensor:
        """(B, T) per-action weights, each optimizer step by itself; rows that are not trained weigh 0."""
        aggregation = aggregation or self.aggregation
        _require(aggregation, batch)
        weights = torch.zeros_like(at_least_float32(batch.old_log_probs))
        for update in torch.unique(batch.update).tolist():
            rows = ((batch.update == update) & batch.trained).nonzero().squeeze(1)
            if len(rows):
                some = batch.index(rows)
                share = aggregation(some) / leaves(some) if self.shared == "once" else aggregation(some)
                weights[rows] = share.to(weights.dtype)
        return weights * batch.mask

    @torch.no_grad()
    def learning_rate_factor(self, batch: Batch, update: int) -> float:
        """The share of the learning rate that this optimizer step deserves; 1 unless the recipe says otherwise."""
        rows = (batch.trained & (batch.update == update)).nonzero().squeeze(1)
        if self.learning_rate is None or not len(rows):
            return 1.0
        _require(self.learning_rate, batch)
        return float(self.learning_rate(batch.index(rows)))

    def has_signal(self, batch: Batch) -> Tensor:
        """(B,) bool: rows that can move the weights. The others may skip the update: their place in the
        denominators is already in `weights`."""
        if self.regularizers or self.score_objective or self.matching_objective:
            return batch.trained
        if not self.trust_region.spec.silent_at_zero:
            return batch.trained
        return batch.trained & (batch.advantage != 0).any(1)

    # ---- loss: with gradient, per micro-batch

    def scores(self, evaluation: Evaluation, batch: Batch) -> Tensor:
        assert self.score is not None
        return self.score(evaluation, batch)

    def score_coefficients(self, scores: Tensor, batch: Batch) -> Tensor:
        """dJ/ds of the whole update, shaped like `scores`, so that micro-batches may add `coefficients * scores`."""
        assert self.score_objective is not None
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.score_objective(leaf, batch), leaf)
        return gradient

    def loss(self, evaluation: Evaluation, batch: Batch, weights: Tensor, coefficients: Tensor | None = None) -> Loss:
        """This micro-batch's share: `-(weights * objective).sum()` and the penalties with their coefficients."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        loss = weights.new_zeros(())
        if self.score_objective:
            assert coefficients is not None
            loss = -(1 - self.policy_weight) * (coefficients * self.scores(evaluation, batch)).sum()
        if self.matching_objective:
            loss = -(weights * self.matching_objective(evaluation, batch)).sum()
        elif self.policy_weight or not self.score_objective:
            batch = self._update_credit(evaluation, batch, sums)
            acted = _by_behaviour(batch)
            log_ratio = self.ratio(evaluation, acted)
            policy = -(weights * self.trust_region(log_ratio, evaluation, acted)).sum()
            loss = loss + (self.policy_weight or 1.0) * policy
            sums |= self._diagnose(log_ratio, evaluation, acted)
        for regularizer in self.regularizers:
            penalty = regularizer.bound(evaluation, batch)
            own = batch.columns[regularizer.place] if regularizer.aggregation else weights
            value = penalty if penalty.dim() == 0 else (own * penalty).sum()
            loss = loss + regularizer.coefficient * value
            sums[f"regularizer/{regularizer.bound.name}"] = (value.detach(), own.sum())
        return Loss(loss, sums)

    def _update_credit(self, evaluation: Evaluation, batch: Batch, sums: dict) -> Batch:
        for bound in self.credit:
            if bound.spec.phase == "update":
                with torch.no_grad():
                    advantage, _ = bound(batch.advantage, evaluation, batch)
                sums |= _credited(bound.name, batch.advantage, advantage, batch)
                batch = replace(batch, advantage=advantage * batch.mask)
        return batch

    def _diagnose(self, log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> dict:
        """How far the policy moved, and the shares of actions whose gradient the trust region removed or changed."""
        with torch.enable_grad():
            leaf = log_ratio.detach().clone().requires_grad_()
            # those that detach the ratio have their gradient through the log-probs, which move with it
            moving = replace(evaluation, log_probs=evaluation.log_probs.detach() + leaf - leaf.detach())
            objective = self.trust_region(leaf, moving, batch)
            gradient = torch.zeros_like(leaf)
            if objective.requires_grad:
                (gradient,) = torch.autograd.grad(objective.sum(), leaf, allow_unused=True, materialize_grads=True)
        mask = (batch.mask & batch.trained[:, None]).to(leaf.dtype)
        active = mask * (batch.advantage != 0)
        ratio = leaf.detach().clamp(-20, 20).exp()
        drift = evaluation.log_probs.detach() - batch.old_log_probs
        plain = batch.advantage * ratio
        changed = (gradient - plain).abs() > CHANGED * plain.abs()
        return {
            "ratio/gap": ((leaf.detach().abs() * mask).sum(), mask.sum()),
            "trust_region/changed_fraction": ((changed * active).sum(), active.sum()),
            "ratio/mean": ((ratio * mask).sum(), mask.sum()),
            "ratio/clip_fraction": (((gradient == 0) * active).sum(), active.sum()),
            "ratio/approx_kl": ((((-drift).clamp(-20, 20).exp() - 1 + drift) * mask).sum(), mask.sum()),
        }

    # ---- state of the functions that remember

    def memory(self) -> list[dict[str, Any]]:
        """What the functions that remember know now, for `recall`."""
        return [copy.deepcopy(vars(b.state)) for b in self.stages if b.state is not None]

    def recall(self, memory: list[dict[str, Any]]) -> None:
        """Go back to what `memory` was."""
        for bound, known in zip((b for b in self.stages if b.state is not None), memory, strict=True):
            vars(bound.state).update(copy.deepcopy(known))

    def state_dict(self) -> dict[str, Any]:
        return {f"{b.spec.stage}/{b.name}": b.state.state_dict() for b in self.stages if hasattr(b.state, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for bound in self.stages:
            key = f"{bound.spec.stage}/{bound.name}"
            if hasattr(bound.state, "load_state_dict") and key in state:
                bound.state.load_state_dict(state[key])


def _by_behaviour(batch: Batch) -> Batch:
    """`batch` whose old log-probs are the ratio's denominators: those of whoever wrote the row, where it says so."""
    if "behaviour_log_probs" not in batch:
        return batch
    return replace(batch, old_log_probs=batch["behaviour_log_probs"] * batch.mask)


def _drop_unscored(batch: Batch) -> Batch:
    if batch.reward is None:
        return batch
    scored = ~torch.isnan(batch.reward)
    return replace(batch, counted=batch.counted & scored, trained=batch.trained & scored)


def _require(bound: Bound | None, batch: Batch) -> None:
    """What a function reads beyond the basics must be there: a field, the components, or a column of the rollouts."""
    for name, column in bound.columns.items() if bound else ():
        value = getattr(batch, name, None) if name in Batch.__dataclass_fields__ else None
        if (value is None or (isinstance(value, dict) and not value)) and name not in batch:
            present = sorted({*batch.columns, *batch.components})
            raise ConfigError(
                f"{bound.spec.stage} {bound.name!r} reads {name!r}, which these rollouts do not carry; "
                f"they carry: {', '.join(present) or 'no further columns'}"
                + (f". It takes {ways_to(column)}" if column.makers else "")
            )


def _selected(batch: Batch) -> dict[str, float]:
    """What selection left."""
    return {
        "group/counted_fraction": batch.counted.float().mean().item(),
        "group/trained_fraction": batch.trained.float().mean().item(),
    }


def _credited(name: str, before: Tensor, after: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """How many of the actions with an advantage a credit function silenced, and how many it reweighted."""
    active = batch.mask & batch.trained[:, None] & (before != 0)
    silenced, changed = active & (after == 0), active & (after != 0) & (after != before)
    return {
        f"credit/{name}/silenced": (silenced.sum().float(), active.sum().float()),
        f"credit/{name}/reweighted": (changed.sum().float(), active.sum().float()),
    }


def _per_action(advantage: Tensor, batch: Batch) -> Tensor:
    """(B,) or (B, T) -> (B, T), zero outside the mask and on rows that do not count."""
    if advantage.dim() == 1:
        advantage = advantage[:, None].expand(batch.mask.shape)
    if advantage.shape != batch.mask.shape:
        raise ValueError(f"advantage has shape {tuple(advantage.shape)}; expected (B,) or {tuple(batch.mask.shape)}")
    keep = batch.mask & batch.counted[:, None]
    return torch.where(keep, advantage, torch.zeros_like(advantage))


def signal(batch: Batch) -> dict[str, float]:
    """How much of the batch carries a learning signal."""
    flat = degenerate(batch.reward, batch.group, batch.counted) if batch.reward is not None else ~batch.trained
    return {
        "signal/zero_variance_fraction": flat.float().mean().item(),
        "signal/trained_fraction": batch.trained.float().mean().item(),
        "signal/active_fraction": (batch.advantage != 0).any(1).float().mean().item(),
    }
