"""The objective on plain tensors: no model, no trainer. `compute` gives the loss, `explain` everything behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.config import ObjectiveConfig
from mmrl.objective.groups import group_count
from mmrl.objective.numerics import at_least_float32
from mmrl.objective.objective import Loss, Objective
from mmrl.record import Batch, Evaluation
from mmrl.stages import Need

Recipe = str | Mapping[str, Any] | ObjectiveConfig | Objective


@dataclass
class Explanation:
    """The loss of one optimizer step and what it was made of.

    loss     scalar with gradient
    batch    with advantage, loss mask, and which rows counted and trained
    weights  (B, T) every denominator of the step; rows and actions outside the loss weigh 0
    sums     {name: (sum, count)} ratios, clip fractions, penalties, reweighted actions
    """

    loss: Tensor
    batch: Batch
    weights: Tensor
    sums: dict[str, tuple[Tensor, Tensor]]

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(value / count.clamp(min=1)) for name, (value, count) in self.sums.items()}


def compute(
    recipe: Recipe, batch: Batch | Mapping[str, Any], evaluation: Evaluation | Mapping[str, Any] | Tensor
) -> Tensor:
    """The loss of one optimizer step on plain tensors, with its gradient.

        loss = mmrl.objective.compute(
            "gspo",
            {"mask": mask, "old_log_probs": old, "reward": reward, "group": group},
            new_log_probs,
        )
        loss.backward()

    recipe      a recipe's name ("dapo"), an `objective:` mapping ({"advantage": "rloo", "trust_region": {"name":
                "clip", "high": 0.28}}), or an `Objective`; keep an Objective where a function remembers across steps
                (a name or a mapping lives for one call: every prompt is at its first visit)
    batch       a `Batch` or its fields by name. For "grpo" these four and no more:
                    mask           (B, T) 1 where the policy acted: padding, prompts and tool outputs are 0
                    old_log_probs  (B, T) of the policy that sampled
                    reward         (B,)   NaN where unscored: the row leaves baseline and loss
                    group          (B,)   integers, equal for the rollouts of one prompt; any order, any sizes
                Instead of `reward`: `success (B,)` of 1 and 0, or a precomputed `advantage`, (B,) or (B, T), which
                nothing shapes or selects again. Rewards of 0 and 1 stand for `success` where it is not given.
                `max_length` for what divides by the limit on T (dr_grpo, siren) or shapes by it (dapo). Any other
                name becomes a column: `ref_log_probs`, `entropy`, `segment`, ... (`Objective.of(recipe).needs`)
    evaluation  the current log-probs (B, T) with gradient, or a mapping with `log_probs` and further columns

    What stands outside the mask is never read. Everything is computed in the precision it comes in, half precision
    in float32. The loss is summed over nothing else: do not divide it by micro-batches.

    Raises ConfigError for what is missing or cannot be combined, ValueError for shapes that do not fit.
    """
    return explain(recipe, batch, evaluation).loss


def explain(
    recipe: Recipe, batch: Batch | Mapping[str, Any], evaluation: Evaluation | Mapping[str, Any] | Tensor
) -> Explanation:
    """As `compute`, with the advantages, weights and diagnostics behind the loss."""
    objective = recipe if isinstance(recipe, Objective) else Objective.of(_objective_of(recipe))
    batch, evaluation = _tidy(_batch_of(batch), _evaluation_of(evaluation))
    _check_needs(objective, batch, evaluation)
    if batch.prompt is None and objective is not recipe:
        batch = replace(batch, prompt=batch.group)
    _check_groups(objective, batch)
    batch, weights = objective.prepare(batch)
    if not objective.score_objective:
        share = objective.loss(evaluation, batch, weights)
        return Explanation(share.loss, batch, weights, share.sums)
    share = _whole_sequence(objective, evaluation, batch, weights)
    return Explanation(share.loss, batch, weights, share.sums)


def _whole_sequence(objective: Objective, evaluation: Evaluation, batch: Batch, weights: Tensor) -> Loss:
    """`sum c s` has the exact gradient; its value is replaced by the objective's own."""
    rows = batch.trained.nonzero().squeeze(1)
    few, scores = batch.index(rows), objective.scores(evaluation, batch)
    coefficients = torch.zeros_like(scores)
    coefficients[rows] = objective.score_coefficients(scores[rows], few)
    share = objective.loss(evaluation, batch, weights, coefficients)
    assert objective.score_objective is not None
    value = objective.score_objective(scores[rows].detach(), few) - (coefficients * scores.detach()).sum()
    return replace(share, loss=share.loss - (1 - objective.policy_weight) * value)


def _objective_of(recipe: str | Mapping[str, Any] | ObjectiveConfig) -> ObjectiveConfig | Mapping[str, Any]:
    if isinstance(recipe, str):
        from mmrl.recipes import load_recipe

        return load_recipe(recipe).objective
    return recipe.get("objective", recipe) if isinstance(recipe, Mapping) else recipe


def _batch_of(values: Batch | Mapping[str, Any]) -> Batch:
    if isinstance(values, Batch):
        return values
    missing = [name for name in ("mask", "old_log_probs") if name not in values]
    if missing:
        raise ConfigError(f"the batch needs {' and '.join(missing)} (B, T); it has: {', '.join(sorted(values))}")
    return _from_fields(Batch, values)


def _evaluation_of(values: Evaluation | Mapping[str, Any] | Tensor) -> Evaluation:
    if isinstance(values, Tensor):
        return Evaluation(values)
    if isinstance(values, Evaluation):
        return values
    if "log_probs" not in values:
        raise ConfigError(f"the evaluation needs log_probs (B, T); it has: {', '.join(sorted(values))}")
    return _from_fields(Evaluation, values)


def _from_fields(kind: type, values: Mapping[str, Any]) -> Any:
    """Known fields to the constructor, every other tensor to the columns."""
    names = {f.name for f in fields(kind)}
    for name, value in values.items():
        if not isinstance(value, Tensor | Mapping | int | None):
            raise ConfigError(f"{name} is a {type(value).__name__}; expected a tensor")
    known = {k: v for k, v in values.items() if k in names}
    extra = {k: v for k, v in values.items() if k not in names}
    known["columns"] = {**known.get("columns", {}), **extra}
    return kind(**known)


def _check_shapes(batch: Batch, evaluation: Evaluation) -> None:
    shape = tuple(batch.mask.shape)
    tensors = {"log_probs": evaluation.log_probs, "old_log_probs": batch.old_log_probs, "loss_mask": batch.loss_mask}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected the mask's {shape}")
    for name in ("group", "reward", "success", "counted", "trained", "update"):
        tensor = getattr(batch, name)
        if tensor is not None and tuple(tensor.shape) != shape[:1]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected ({shape[0]},)")


def _check_needs(objective: Objective, batch: Batch, evaluation: Evaluation) -> None:
    """Every column a function declares must be there, on either side, by its plain name or by `Need.key`."""
    for bound in objective.stages:
        for name, need in bound.needs.items():
            sampled = need == Need("log_probs")
            if sampled or {name, need.key} & {*batch.columns, *evaluation.columns}:
                continue
            side = "evaluation, with gradient" if need.weights == "current" else "batch"
            present = ", ".join(sorted({*batch.columns, *evaluation.columns})) or "none"
            raise ConfigError(
                f"{bound.spec.stage} {bound.name!r} reads the column {name!r} ({need.key}): add it to the {side}. "
                f"Columns given: {present}"
            )


def _check_groups(objective: Objective, batch: Batch) -> None:
    alone = bool((group_count(batch.group) < 2).all())
    if alone and batch.advantage is None and objective.advantage.spec.relative:
        raise ConfigError(
            f"advantage {objective.advantage.name!r} compares the rollouts of one prompt, and every group of this "
            "batch has one: give `group (B,)`, equal for the rollouts of a prompt, or a precomputed `advantage`"
        )


def _binary(values: Tensor | None) -> bool:
    """Whether all known values are 0 or 1."""
    return values is not None and bool(((values == 0) | (values == 1) | values.isnan()).all())


def _tidy(batch: Batch, evaluation: Evaluation) -> tuple[Batch, Evaluation]:
    """Blank what stands outside the mask, promote half precision, and let both sides see each other's columns."""
    _check_shapes(batch, evaluation)

    def tidy(values: Any) -> Any:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        values = at_least_float32(values)
        if values.shape[:2] != batch.mask.shape:
            return values
        return torch.where(batch.mask.view(*batch.mask.shape, *[1] * (values.dim() - 2)), values, 0.0)

    def every(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: tidy(v) for k, v in columns.items()}

    plain = {n: tidy(getattr(batch, n)) for n in ("old_log_probs", "reward", "success", "advantage")}
    if plain["reward"] is None and plain["advantage"] is None:
        plain["reward"] = plain["success"]
    if plain["success"] is None and _binary(plain["reward"]):
        plain["success"] = plain["reward"]
    ready = replace(
        batch,
        **plain,
        components=every(batch.components),
        columns=every({**evaluation.columns, **batch.columns}),
        counted=batch.counted.bool(),
        trained=batch.trained.bool(),
    )
    current = every({**batch.columns, **evaluation.columns})
    return ready, replace(evaluation, log_probs=tidy(evaluation.log_probs), columns=current)
