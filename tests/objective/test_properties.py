"""What must hold for every registered function of every stage, now and for those still to be written.

Row order, padding, micro-batches and what stands outside the mask must change nothing. The functions come from the
registry: a new one is covered the day it is registered.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mmrl.objective import Objective, explain
from mmrl.record import Batch, Evaluation
from mmrl.stages import StageFunction, registered
from tests.objective.batches import evaluation_of, fill, near, objective_with, random_batch

STAGES = (
    "shaping", "group", "advantage", "credit", "ratio", "trust_region", "aggregation", "regularizer", "score",
    "score_objective", "matching_objective",
)  # fmt: skip
MATCHING = {"awm", "diffusion_nft", "imitation", "matching_loss", "crd", "dgpo_direct", "gdro"}
"""Their axis is draws of time and noise, and no gradient goes through log-probs: `test_matching` is theirs."""
FUNCTIONS = [f for f in registered() if f.stage in STAGES and f.name not in MATCHING]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.stage}-{f.name}")


def prepared(function: StageFunction, dtype: torch.dtype = torch.float64) -> tuple[Objective, Batch, Tensor, dict]:
    objective = objective_with(function)
    batch, current = fill(random_batch(dtype=dtype), objective.stages)
    return objective, batch, near(batch), current


def loss_and_gradient(function: StageFunction, batch: Batch, new: Tensor, current: dict) -> tuple[Tensor, Tensor]:
    """A fresh objective, so that functions that remember start from nothing."""
    new = new.detach().clone().requires_grad_()
    loss = explain(objective_with(function), batch, evaluation_of(new, current)).loss
    (gradient,) = torch.autograd.grad(loss, new, allow_unused=True, materialize_grads=True)
    return loss.detach(), gradient


def widened(values: Tensor, mask: Tensor, by: int, garbage: float) -> Tensor:
    if values.dim() < 2 or values.shape[1] != mask.shape[1]:
        return values
    filler = -1 if values.dtype == torch.long and (values < 0).any() else garbage
    tail = torch.full((values.shape[0], by, *values.shape[2:]), filler, dtype=torch.float64)
    return torch.cat([values, tail.to(values.dtype)], dim=1)


def padded(batch: Batch, by: int, garbage: float) -> Batch:
    """More columns on the right, outside the mask, with garbage in every float column."""
    changes = {}
    for f in fields(Batch):
        value = getattr(batch, f.name)
        if isinstance(value, Tensor):
            keep_empty = f.name in ("mask", "loss_mask", "actions")
            changes[f.name] = widened(value, batch.mask, by, 0 if keep_empty else garbage)
    changes["columns"] = {k: widened(v, batch.mask, by, garbage) for k, v in batch.columns.items()}
    return replace(batch, **changes)


@every_function
def test_loss_and_gradient_are_finite_and_keep_their_precision(function):
    _, batch, new, current = prepared(function)
    loss, gradient = loss_and_gradient(function, batch, new, current)
    assert loss.dtype == torch.float64 and loss.dim() == 0
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert (gradient[~batch.mask] == 0).all()


@every_function
def test_row_order_changes_nothing(function):
    _, batch, new, current = prepared(function)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    loss, gradient = loss_and_gradient(function, batch, new, current)
    moved = {k: v[order] for k, v in current.items()}
    loss_moved, gradient_moved = loss_and_gradient(function, batch.index(order), new.detach()[order], moved)
    assert torch.allclose(loss, loss_moved, atol=1e-10)
    assert torch.allclose(gradient[order], gradient_moved, atol=1e-10)


@every_function
def test_padding_and_what_stands_in_it_change_nothing(function):
    _, batch, new, current = prepared(function)
    loss, gradient = loss_and_gradient(function, batch, new, current)
    for garbage in (0.0, 3.0):
        wide_new = widened(new.detach(), batch.mask, 3, garbage)
        wide = {k: widened(v, batch.mask, 3, garbage) for k, v in current.items()}
        loss_wide, gradient_wide = loss_and_gradient(function, padded(batch, 3, garbage), wide_new, wide)
        assert torch.allclose(loss, loss_wide, atol=1e-10)
        assert torch.allclose(gradient, gradient_wide[:, : gradient.shape[1]], atol=1e-10)
        assert (gradient_wide[:, gradient.shape[1] :] == 0).all()


@every_function
def test_micro_batches_add_up_to_the_whole_batch(function):
    objective, batch, new, current = prepared(function)
    _, gradient = loss_and_gradient(function, batch, new, current)
    evaluation = evaluation_of(new, current)
    ready, weights = objective.prepare(batch)
    coefficients = None
    if objective.score_objective:
        rows = ready.trained.nonzero().squeeze(1)
        scores = objective.scores(evaluation, ready).detach()
        coefficients = torch.zeros_like(scores)
        coefficients[rows] = objective.score_coefficients(scores[rows], ready.index(rows))
    total = 0
    for part in (torch.tensor([2, 5, 9]), torch.tensor([0, 1, 3, 12]), torch.tensor([4, 6, 7, 8, 10, 11])):
        few = Evaluation(new[part], {k: v[part] for k, v in current.items()})
        own = None if coefficients is None else coefficients[part]
        total = total + objective.loss(few, ready.index(part), weights[part], own).loss
    (added,) = torch.autograd.grad(total, new, allow_unused=True, materialize_grads=True)
    assert torch.allclose(gradient, added, atol=1e-10)


@every_function
def test_unscored_rows_train_nothing(function):
    _, batch, new, current = prepared(function)
    reward = batch.reward.clone()
    reward[5] = float("nan")
    components = {k: v.clone() for k, v in batch.components.items()}
    for values in components.values():
        values[5] = float("nan")
    _, gradient = loss_and_gradient(function, replace(batch, reward=reward, components=components), new, current)
    assert torch.isfinite(gradient).all()
    assert (gradient[5] == 0).all()


@every_function
def test_half_precision_is_computed_in_single(function):
    _, batch, new, current = prepared(function, torch.bfloat16)
    loss, gradient = loss_and_gradient(function, batch, new, current)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


@every_function
def test_it_says_what_it_is(function):
    assert function.paper and function.formula and function.summary
    assert function.confidence in ("verified", "partly", "reconstructed", "ours")
    described = (function.function.__doc__ or "") + (getattr(function.function, "__init__", None).__doc__ or "")
    for name in function.defaults.keys() - {"eps", "ddof"}:
        assert name in described, f"{function.stage} {function.name}: say how to choose {name!r}"


def constant_in_rows(values: Tensor, mask: Tensor) -> bool:
    """Whether all actions of each row have the value of its first."""
    first = values.gather(1, mask.long().argmax(1, keepdim=True))
    return bool(((values - first).abs() * mask < 1e-9).all())


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f.grain == "row"], ids=lambda f: f"{f.stage}-{f.name}")
def test_what_says_it_treats_rows_as_one_does(function):
    objective, batch, new, current = prepared(function)
    ready, _ = objective.prepare(batch)
    evaluation = evaluation_of(new, current)
    if function.stage in ("advantage", "credit"):
        ready = objective._update_credit(evaluation, ready, {})
        values = ready.advantage
    else:
        values = objective.ratio(evaluation, ready)
        values = objective.trust_region(values, evaluation, ready) if function.stage == "trust_region" else values
    assert constant_in_rows(values, ready.mask)


def _registered(stage_name: str, name: str, function) -> StageFunction:
    from mmrl import stages

    stages.stage(stage_name, name, paper="a test", formula="wrong on purpose", confidence="ours")(function)
    return stages.find(stage_name, name)


@pytest.fixture
def forget():
    from mmrl import stages

    before = dict(stages._REGISTRY)
    yield
    stages._REGISTRY.clear()
    stages._REGISTRY.update(before)


def test_a_function_that_depends_on_the_micro_batch_is_caught(forget):
    def local_mean(log_ratio, evaluation, batch):
        return log_ratio * batch.advantage / len(batch)

    with pytest.raises(AssertionError):
        test_micro_batches_add_up_to_the_whole_batch(_registered("trust_region", "local_mean", local_mean))


def test_a_function_that_depends_on_the_padding_is_caught(forget):
    def by_width(evaluation, batch):
        return (evaluation.log_probs - batch.old_log_probs).sum(1, keepdim=True) / batch.mask.shape[1] * batch.mask

    with pytest.raises(AssertionError):
        test_padding_and_what_stands_in_it_change_nothing(_registered("ratio", "by_width", by_width))


def test_a_function_that_depends_on_the_row_order_is_caught(forget):
    def by_row(batch):
        return torch.arange(len(batch), dtype=torch.float64)

    with pytest.raises(AssertionError):
        test_row_order_changes_nothing(_registered("advantage", "by_row", by_row))
