"""Entropy regularizers: direction of the gradient, anchors, micro-batches, worked numbers."""

from dataclasses import replace

import pytest
import torch

from mmrl.objective import Objective
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound, Need


def batch_of(shape=(2, 4), **fields) -> Batch:
    columns = fields.pop("columns", {})
    fields.setdefault("mask", torch.ones(shape, dtype=torch.bool))
    fields.setdefault("reward", torch.zeros(shape[0]).double())
    fields.setdefault("group", torch.zeros(shape[0], dtype=torch.long))
    return Batch(old_log_probs=torch.full(shape, -1.0).double(), columns=columns, **fields)


def evaluation(**columns) -> Evaluation:
    any_column = next(iter(columns.values()))
    return Evaluation(torch.full(any_column.shape, -1.0).double(), columns)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_entropy_bonus_and_sampled_entropy():
    entropy = rows([0.5, 1.0], [2.0, 0.0])
    batch = batch_of((2, 2), mask=torch.tensor([[True, True], [True, False]]))
    assert Bound.of("regularizer", "entropy_bonus")(evaluation(current_entropy=entropy), batch).tolist() == [
        [-0.5, -1.0],
        [-2.0, 0.0],
    ]
    penalty = Bound.of("regularizer", "sampled_entropy")(Evaluation(rows([-0.5, -2], [-1, -1])), batch)
    assert penalty.tolist() == [[0.5, 2.0], [1.0, 0.0]]


def test_entropy_band_pulls_each_task_back_from_its_own_side():
    old = rows([0.01, 0.03], [0.5, 0.5], [3.0, 3.0])
    batch = batch_of((3, 2), task=torch.tensor([0, 1, 2]), columns={"entropy": old})
    bound = Bound.of("regularizer", {"name": "entropy_band", "low": 0.1, "high": 1.0})
    batch = replace(batch, columns={**batch.columns, **bound.prepare(batch)})
    current = old.clone().requires_grad_()
    penalty = bound(evaluation(current_entropy=current), batch)
    assert penalty.mean(1).tolist() == pytest.approx([0.08, 0.0, 2.0])
    penalty.sum().backward()
    assert current.grad.tolist() == [[-1, -1], [0, 0], [1, 1]], "descent raises the low one and lowers the high one"


def test_entropy_band_measured_on_what_was_sampled_reads_no_distribution():
    """G2RPO's own band, .2 to .6 nats of -log p."""
    bound = Bound.of("regularizer", {"name": "entropy_band", "measure": "sampled"})
    assert not bound.needs
    old = rows([-0.1, -0.1], [-0.4, -0.4], [-1.0, -1.0])
    batch = replace(batch_of((3, 2), task=torch.tensor([0, 1, 2])), old_log_probs=old)
    batch = replace(batch, columns=bound.prepare(batch))
    new = old.clone().requires_grad_()
    penalty = bound(Evaluation(new), batch)
    assert penalty.mean(1).tolist() == pytest.approx([0.1, 0.0, 0.4])
    penalty.sum().backward()
    assert new.grad.tolist() == [[1, 1], [0, 0], [-1, -1]], "descent spreads the sure task and gathers the unsure one"


def test_entropy_target_follows_and_is_bounded():
    bound = Bound.of("regularizer", {"name": "entropy_target", "target": 0.5, "rate": 0.1, "most": 0.05})
    low = batch_of((1, 2), columns={"entropy": rows([0.1, 0.3])})
    assert bound.prepare(low) == {} and bound.state.weight == pytest.approx(0.03)
    bound.prepare(low)
    assert bound.state.weight == 0.05
    penalty = bound(evaluation(current_entropy=rows([1.0, 2.0])), low)
    assert penalty.tolist() == [[-0.05, -0.1]]
    resumed = Bound.of("regularizer", {"name": "entropy_target", "target": 0.5, "rate": 0.1, "most": 0.05})
    resumed.state.load_state_dict(bound.state.state_dict())
    for controller in (bound, resumed):
        controller.prepare(batch_of((1, 2), columns={"entropy": rows([2.0, 2.0])}))
        assert controller.state.weight == 0.0


class TestSiren:
    def objective(self):
        return Objective.of(
            {"advantage": "dr_grpo", "regularizers": [{"name": "siren", "coefficient": 1.0, "peak": 0.5}]}
        )

    def prepared(self, objective, old):
        need = Need("nucleus_entropy", options=(("inclusive", True), ("top_p", 0.8)))
        batch = batch_of(old.shape, columns={need.key: old}, reward=torch.arange(len(old)).double())
        return objective.prepare(batch)

    def penalty(self, objective, batch, weights, current):
        need = Need("nucleus_entropy", weights="current", options=(("inclusive", True), ("top_p", 0.8)))
        evaluation = Evaluation(batch.old_log_probs, {need.key: current})
        return objective.loss(evaluation, batch, weights).sums["regularizer/siren"][0], evaluation

    first = rows([0.1, 0.2, 0.6, 0.8], [0.4, 0.4, 1.0, 2.0])

    def test_the_first_batch_is_the_anchor(self):
        objective = self.objective()
        batch, weights = self.prepared(objective, self.first)
        # peaks above the median: (.6, .8) and (1, 2): means .7 and 1.5
        assert objective.regularizers[0].bound.state.anchor == pytest.approx(1.1)
        value, _ = self.penalty(objective, batch, weights, self.first)
        assert value.item() == pytest.approx(0)

    @pytest.mark.parametrize(("scale", "sign"), [(0.5, -1), (2.0, 1)])
    def test_gradient_raises_entropy_below_the_anchor_and_lowers_it_above(self, scale, sign):
        objective = self.objective()
        self.prepared(objective, self.first)
        batch, weights = self.prepared(objective, self.first * scale)
        value, _ = self.penalty(objective, batch, weights, self.first * scale)
        assert value.item() == pytest.approx((1.1 * scale - 1.1) ** 2)
        current = (self.first * scale).requires_grad_()
        bound = objective.regularizers[0].bound
        need = Need("nucleus_entropy", weights="current", options=(("inclusive", True), ("top_p", 0.8)))
        bound(Evaluation(batch.old_log_probs, {need.key: current}), batch).backward()
        expected = 2 * (1.1 * scale - 1.1) * rows([0, 0, 0.25, 0.25], [0, 0, 0.25, 0.25])
        torch.testing.assert_close(current.grad, expected)
        assert (current.grad.sign() == sign).sum() == 4

    def test_micro_batches_add_up_and_flat_responses_contribute_nothing(self):
        objective = self.objective()
        self.prepared(objective, self.first)
        later = torch.cat([self.first * 2, rows([0.7, 0.7, 0.7, 0.7])])
        batch, weights = self.prepared(objective, later)
        whole, _ = self.penalty(objective, batch, weights, later + 0.1)
        parts = [
            self.penalty(objective, batch.index(i), weights[i], (later + 0.1)[i])[0]
            for i in (torch.tensor([0]), torch.tensor([1, 2]))
        ]
        assert sum(parts).item() == pytest.approx(whole.item())
        assert (batch.columns["siren_slope"][2] == 0).all()


class TestDualScale:
    def batch(self, success):
        ids = torch.tensor([[1, 2, 3], [1, 2, 3], [7, 8, 9], [4, 5, 6]])
        return batch_of(
            (4, 3), actions=ids, success=torch.tensor(success).double(), reward=torch.tensor(success).double()
        )

    def weights(self, success, **parameters):
        bound = Bound.of("regularizer", {"name": "dsdr_local", **parameters})
        return bound.prepare(self.batch(success))["dsdr_weight"], bound

    def test_right_rollouts_are_weighted_by_their_diversity(self):
        weight, _ = self.weights([1.0, 1, 1, 0])
        spread = torch.tensor([0.25, 0.25, 0.5]).double()
        torch.testing.assert_close(weight[:3], torch.softmax(spread, 0))
        assert weight[3] == 0
        assert self.weights([1.0, 0, 0, 0])[0].tolist() == [1, 0, 0, 0]
        assert self.weights([0.0, 0, 0, 0])[0].tolist() == [0, 0, 0, 0]

    def test_it_raises_entropy_of_right_rollouts_only_and_is_length_invariant(self):
        weight, bound = self.weights([1.0, 1, 1, 0])
        batch = self.batch([1.0, 1, 1, 0])
        batch.columns["dsdr_weight"] = weight
        entropy = torch.ones(4, 3).double().requires_grad_()
        penalty = bound(evaluation(current_entropy=entropy), batch)
        assert penalty.item() == pytest.approx(-1.0)
        penalty.backward()
        torch.testing.assert_close(entropy.grad.sum(1), -weight)
