"""Composes the stages into one loss. Two phases:

    prepare  without gradient, on the rollout batch of all ranks: shaping, group, advantage, credit, weights
    loss     per micro-batch, with gradient: ratio, trust region, regularizers

`weights` hold every denominator of the optimizer step, so micro-batch losses add up and nothing divides again.
`compute` runs both on plain tensors: bring the objective into your own loop with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.groups import degenerate, group_count
from mmrl.objective.numerics import at_least_float32
from mmrl.record import Batch, Evaluation, Selection
from mmrl.settings import Section
from mmrl.stages import Bound, Need

Choice = str | dict[str, Any]


class ObjectiveConfig(Section):
    """Which function plays each stage: a name, or `{name: ..., parameter: ...}`."""

    shaping: list[Choice] = []
    group: list[Choice] = []
    advantage: Choice = "grpo"
    credit: list[Choice] = []
    ratio: Choice = "token"
    trust_region: Choice = "clip"
    aggregation: Choice = "token_mean"
    regularizers: list[Choice] = []
    score: Choice | None = None
    score_objective: Choice | None = None
    matching_objective: Choice | None = None


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
    regularizers: list[tuple[Bound, float]]
    score: Bound | None = None
    score_objective: Bound | None = None
    matching_objective: Bound | None = None

    @classmethod
    def of(cls, config: ObjectiveConfig | Mapping[str, Any]) -> Objective:
        if not isinstance(config, ObjectiveConfig):
            config = ObjectiveConfig.model_validate(dict(config))

        def one(stage: str) -> Bound | None:
            choice = getattr(config, stage)
            return Bound.of(stage, choice) if choice is not None else None

        def many(stage: str) -> list[Bound]:
            return [Bound.of(stage, choice) for choice in getattr(config, stage)]

        regularizers = []
        for choice in config.regularizers:
            coefficient = choice.get("coefficient") if isinstance(choice, dict) else None
            if coefficient is None:
                raise ConfigError(
                    f"regularizer {choice!r}: give it a coefficient, as in {{name: kl, coefficient: 0.04}}"
                )
            regularizers.append((Bound.of("regularizer", choice), float(coefficient)))
        objective = cls(
            many("shaping"), many("group"), one("advantage"), many("credit"), one("ratio"), one("trust_region"),
            one("aggregation"), regularizers, one("score"), one("score_objective"), one("matching_objective"),
        )  # fmt: skip
        objective._check()
        return objective

    def _check(self) -> None:
        if (self.score is None) != (self.score_objective is None):
            raise ConfigError("a whole-sequence objective needs both `score` and `score_objective`")
        if self.score_objective and self.credit:
            raise ConfigError(
                f"score_objective {self.score_objective.name!r} judges whole sequences, so token credit "
                f"({', '.join(c.name for c in self.credit)}) would have no effect: remove one of them"
            )
        if self.score_objective and self.matching_objective:
            raise ConfigError("choose score_objective or matching_objective, not both")

    @property
    def stages(self) -> list[Bound]:
        single = (self.advantage, self.ratio, self.trust_region, self.aggregation)
        if self.score_objective:
            single = (self.advantage, self.score, self.score_objective, self.aggregation)
        elif self.matching_objective:
            single = (self.advantage, self.matching_objective, self.aggregation)
        return [*self.shaping, *self.group, *self.credit, *single, *(r for r, _ in self.regularizers)]

    @property
    def needs(self) -> dict[Need, list[str]]:
        """Every declared need, and the functions that asked for it."""
        asked: dict[Need, list[str]] = {}
        for bound in self.stages:
            for need in bound.needs.values():
                asked.setdefault(need, []).append(f"{bound.spec.stage} {bound.name!r}")
        return asked

    # ---- prepare: no gradient, the rollout batch of all ranks

    @torch.no_grad()
    def select(self, batch: Batch, after_advantage: bool = False) -> tuple[Batch, list[Selection]]:
        """Stage 4. Functions of scope "batch" whose class says `after_advantage` run behind stage 5."""
        selections = []
        for bound in self.group:
            if getattr(bound.spec.function, "after_advantage", False) != after_advantage:
                continue
            selection = bound(batch)
            changes = {n: getattr(selection, n) for n in ("counted", "trained", "update")}
            batch = replace(batch, **{n: v for n, v in changes.items() if v is not None})
            selections.append(selection)
        return batch, selections

    @torch.no_grad()
    def shape_and_select(self, batch: Batch) -> tuple[Batch, list[Selection]]:
        """Stages 3 and 4. Unscored rows leave the baseline and the loss."""
        for bound in self.shaping:
            batch = replace(batch, reward=bound(batch))
        return self.select(_drop_unscored(batch))

    @torch.no_grad()
    def credit_and_weigh(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Stages 5, 6 and 9: the batch with its advantage and loss mask, and `weights (B, T)`.

        Groups with a single counted member leave the loss when the advantage is relative to the group. An
        advantage that is already set is kept.
        """
        if batch.advantage is None:
            if self.advantage.spec.scope == "group":
                alone = group_count(batch.group, batch.counted) < 2
                batch = replace(batch, trained=batch.trained & ~alone)
            batch = replace(batch, advantage=_per_action(self.advantage(batch), batch))
        batch, _ = self.select(batch, after_advantage=True)
        for bound in self.credit:
            if bound.spec.phase == "prepare":
                advantage, loss_mask = bound(batch.advantage, batch)
                batch = replace(batch, advantage=advantage * batch.mask, loss_mask=loss_mask * batch.mask)
        return batch, self.weights(batch)

    def prepare(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Stages 3 to 6 and 9 in one go, for a batch that is complete."""
        batch, _ = self.shape_and_select(batch)
        return self.credit_and_weigh(batch)

    def weights(self, batch: Batch) -> Tensor:
        """(B, T) per-action weights, each optimizer step by itself; rows that are not trained weigh 0."""
        weights = torch.zeros_like(at_least_float32(batch.old_log_probs))
        for update in torch.unique(batch.update).tolist():
            rows = ((batch.update == update) & batch.trained).nonzero().squeeze(1)
            if len(rows):
                weights[rows] = self.aggregation(batch.index(rows)).to(weights.dtype)
        return weights * batch.mask

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
        """(B,) dJ/ds of the whole update, so that micro-batches may add `coefficients * scores`."""
        assert self.score_objective is not None
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.score_objective(leaf, batch), leaf)
        return gradient

    def loss(self, evaluation: Evaluation, batch: Batch, weights: Tensor, coefficients: Tensor | None = None) -> Loss:
        """This micro-batch's share: `-(weights * objective).sum()` and the penalties with their coefficients."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        if self.score_objective:
            assert coefficients is not None
            loss = -(coefficients * self.scores(evaluation, batch)).sum()
        elif self.matching_objective:
            loss = -(weights * self.matching_objective(evaluation, batch)).sum()
        else:
            batch = self._update_credit(evaluation, batch)
            log_ratio = self.ratio(evaluation, batch)
            loss = -(weights * self.trust_region(log_ratio, evaluation, batch)).sum()
            sums |= self._diagnose(log_ratio, evaluation, batch)
        for bound, coefficient in self.regularizers:
            penalty = bound(evaluation, batch)
            value = penalty if penalty.dim() == 0 else (weights * penalty).sum()
            loss = loss + coefficient * value
            sums[f"regularizer/{bound.name}"] = (value.detach(), torch.ones_like(value))
        return Loss(loss, sums)

    def _update_credit(self, evaluation: Evaluation, batch: Batch) -> Batch:
        for bound in self.credit:
            if bound.spec.phase == "update":
                with torch.no_grad():
                    advantage, _ = bound(batch.advantage, evaluation, batch)
                batch = replace(batch, advantage=advantage * batch.mask)
        return batch

    def _diagnose(self, log_ratio: Tensor, evaluation: Evaluation, batch: Batch) -> dict:
        """How far the policy moved, and the share of actions whose gradient the trust region removed."""
        with torch.enable_grad():
            leaf = log_ratio.detach().clone().requires_grad_()
            detached = replace(evaluation, log_probs=evaluation.log_probs.detach())
            objective = self.trust_region(leaf, detached, batch)
            gradient = torch.zeros_like(leaf)
            if objective.requires_grad:
                (gradient,) = torch.autograd.grad(objective.sum(), leaf, allow_unused=True, materialize_grads=True)
        mask = (batch.mask & batch.trained[:, None]).to(leaf.dtype)
        active = mask * (batch.advantage != 0)
        ratio = leaf.detach().clamp(-20, 20).exp()
        drift = evaluation.log_probs.detach() - batch.old_log_probs
        return {
            "ratio/mean": ((ratio * mask).sum(), mask.sum()),
            "ratio/clip_fraction": (((gradient == 0) * active).sum(), active.sum()),
            "ratio/approx_kl": ((((-drift).clamp(-20, 20).exp() - 1 + drift) * mask).sum(), mask.sum()),
        }

    # ---- state of the functions that remember

    def state_dict(self) -> dict[str, Any]:
        return {f"{b.spec.stage}/{b.name}": b.state.state_dict() for b in self.stages if hasattr(b.state, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for bound in self.stages:
            key = f"{bound.spec.stage}/{bound.name}"
            if hasattr(bound.state, "load_state_dict") and key in state:
                bound.state.load_state_dict(state[key])


def _drop_unscored(batch: Batch) -> Batch:
    if batch.reward is None:
        return batch
    scored = ~torch.isnan(batch.reward)
    return replace(batch, counted=batch.counted & scored, trained=batch.trained & scored)


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


def compute(
    recipe: str | Mapping[str, Any] | ObjectiveConfig | Objective,
    batch: Batch | Mapping[str, Any],
    evaluation: Evaluation | Mapping[str, Any] | Tensor,
) -> Tensor:
    """The loss of one optimizer step on plain tensors; no model needed.

    recipe      a recipe's name ("dapo"), an `objective:` mapping, or an Objective
    batch       Batch, or its fields by name; columns a function needs may be given by their plain names
    evaluation  the current log-probs (B, T), or a mapping with `log_probs` and further columns

        loss = mmrl.objective.compute("gspo", {"mask": m, "old_log_probs": old, "reward": r, "group": g}, new)
        loss.backward()
    """
    objective = recipe if isinstance(recipe, Objective) else Objective.of(_objective_of(recipe))
    batch = batch if isinstance(batch, Batch) else _from_fields(Batch, batch)
    if isinstance(evaluation, Tensor):
        evaluation = Evaluation(evaluation)
    elif not isinstance(evaluation, Evaluation):
        evaluation = _from_fields(Evaluation, evaluation)
    batch, weights = objective.prepare(batch)
    coefficients = None
    if objective.score_objective:
        coefficients = objective.score_coefficients(objective.scores(evaluation, batch), batch)
    loss = objective.loss(evaluation, batch, weights, coefficients)
    if objective.score_objective:
        # the surrogate has the exact gradient; report the objective's own value
        value = -objective.score_objective(objective.scores(evaluation, batch).detach(), batch)
        surrogate = -(coefficients * objective.scores(evaluation, batch)).sum()
        return loss.loss + (value - surrogate.detach())
    return loss.loss


def _objective_of(recipe: str | Mapping[str, Any] | ObjectiveConfig) -> ObjectiveConfig | Mapping[str, Any]:
    if isinstance(recipe, str):
        from mmrl.recipes import load_recipe

        return load_recipe(recipe).objective
    return recipe.get("objective", recipe) if isinstance(recipe, Mapping) else recipe


def _from_fields(kind: type, values: Mapping[str, Any]) -> Any:
    """Known fields to the constructor, every other tensor to the columns."""
    known = {k: v for k, v in values.items() if k in kind.__dataclass_fields__}
    extra = {k: v for k, v in values.items() if k not in known}
    known["columns"] = {**known.get("columns", {}), **extra}
    return kind(**known)
