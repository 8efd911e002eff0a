"""Entropy credit: quantile of the whole batch, what leaves the denominator and what does not."""

import pytest
import torch

from mmrl.objective.credit.entropy import _standardised, entropy_slope
from mmrl.objective.credit.tokens import quantile
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(entropy: torch.Tensor, mask=None, **fields) -> Batch:
    mask = torch.ones(entropy.shape, dtype=torch.bool) if mask is None else mask
    return Batch(mask=mask, old_log_probs=torch.zeros_like(entropy), columns={"entropy": entropy}, **fields)


def test_quantile_equals_torch_quantile():
    values = torch.rand(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for probability in (0.0, 0.3, 0.8, 1.0):
        assert quantile(values, probability) == pytest.approx(torch.quantile(values, probability).item())


def test_forking_tokens_worked_number():
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 5.0]], dtype=torch.float64)
    assert quantile(entropy[0], 0.8).item() == pytest.approx(1.32)
    advantage, mask = Bound.of("credit", "80_20_forking_tokens")(torch.ones_like(entropy), batch_of(entropy))
    assert advantage.tolist() == [[0, 0, 0, 0, 1]]
    assert mask.all()
    _, mask = Bound.of("credit", {"name": "80_20_forking_tokens", "renormalize": True})(
        torch.ones_like(entropy), batch_of(entropy)
    )
    assert mask.sum() == 1


def test_forking_tokens_quantile_covers_the_batch_not_the_row():
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [1.1, 1.2, 1.3, 1.4, 1.5]], dtype=torch.float64)
    advantage, _ = Bound.of("credit", "80_20_forking_tokens")(torch.ones_like(entropy), batch_of(entropy))
    assert advantage.sum(1).tolist() == [0, 2]


def test_forking_tokens_without_any_training_token_are_all_zero():
    entropy = torch.zeros(2, 3, dtype=torch.float64)
    batch = batch_of(entropy, trained=torch.tensor([False, False]))
    advantage, _ = Bound.of("credit", "80_20_forking_tokens")(torch.ones_like(entropy), batch)
    assert (advantage == 0).all()


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


class TestEntropyRegulated:
    def test_gate_of_the_worked_row(self):
        entropy = torch.tensor([[0.1, 1, 2]]).double()
        z = _standardised(entropy, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.long))
        close(torch.sigmoid(z), [[0.272495, 0.491233, 0.734402]])

    def test_the_sign_never_changes_and_zero_stays_zero(self):
        generator = torch.Generator().manual_seed(0)
        entropy = torch.rand(6, 20, generator=generator).double() * 3
        mask = torch.arange(20) < torch.tensor([20, 3, 11, 7, 1, 20])[:, None]
        advantage = torch.tensor([1.0, -1, 0.5, -2, 1, 0]).double()[:, None] * mask
        batch = batch_of(entropy * mask, mask, group=torch.tensor([0, 0, 0, 1, 1, 1]))
        result, _ = Bound.of("credit", "erpo")(advantage, batch)
        assert torch.equal(result.sign(), advantage.sign())
        assert not torch.allclose(result, advantage)

    def test_a_lone_token_of_a_window_keeps_its_advantage(self):
        batch = batch_of(torch.tensor([[0.1, 2.0]]).double())
        result, _ = Bound.of("credit", "erpo")(torch.ones(1, 2).double(), batch)
        close(result, [[1.0, 1.0]])


class TestEntropyDynamics:
    def test_slope_sums_to_zero_over_the_vocabulary_and_is_the_derivative_of_entropy(self):
        p = torch.tensor([0.7, 0.2, 0.1]).double()
        h = -(p * p.log()).sum()
        slope = entropy_slope(p.log(), h)
        close(h, 0.801819)
        close(slope, [0.311601, -0.161524, -0.150077])
        logits = p.log().clone().requires_grad_()
        q = torch.softmax(logits, 0)
        (gradient,) = torch.autograd.grad(-(q * q.log()).sum(), logits)
        close(gradient, (-slope).tolist())
        close((p * slope).sum(), 0.170808)

    def batch(self):
        entropy = torch.tensor([[0.3, 0.8, 1.2, 0.1]]).double()
        batch = batch_of(entropy)
        batch.old_log_probs = torch.tensor([[0.9, 0.5, 0.05, 0.01]]).double().log()
        return batch

    def test_clip_b_drops_the_third_token_from_loss_and_denominator(self):
        batch = self.batch()
        close(entropy_slope(batch.old_log_probs, batch["entropy"]), [[0.175176, 0.053426, -0.089787, -0.045052]])
        bound = Bound.of("credit", {"name": "entropy_dynamics_clip_b", "mu": 1.0})
        result, mask = bound(-torch.ones(1, 4).double(), batch)
        assert mask.tolist() == [[True, True, False, True]] and result[0, 2] == 0
        assert bound(torch.ones(1, 4).double(), batch)[1].all(), "positive tokens always stay"
        assert Bound.of("credit", "entropy_dynamics_clip_b")(-torch.ones(1, 4).double(), batch)[1].all()

    def test_clip_v_drops_the_worst_first_and_no_more_than_allowed(self):
        entropy = torch.full((1, 8), 0.5).double()
        batch = batch_of(entropy)
        batch.old_log_probs = torch.full((1, 8), -0.5).double()
        expected = entropy_slope(batch.old_log_probs, entropy) + torch.tensor([[0, 0, 0, 0, 0, 0, 5.0, 3.0]]).double()
        batch.columns["expected_entropy_slope"] = expected
        half = {"name": "entropy_dynamics_clip_v", "mu": 0.5}
        mask = Bound.of("credit", {**half, "max_share": 0.25})(-torch.ones(1, 8).double(), batch)[1]
        assert (~mask).nonzero()[:, 1].tolist() == [6, 7]
        mask = Bound.of("credit", {**half, "max_share": 0.125})(-torch.ones(1, 8).double(), batch)[1]
        assert (~mask).nonzero()[:, 1].tolist() == [6]
        assert Bound.of("credit", half)(-torch.ones(1, 8).double(), batch)[1].all(), "1e-4 of 8 tokens is none"


def test_d3s_keeps_tokens_by_advantage_times_entropy_and_relaxes_over_the_run():
    entropy = torch.tensor([[1.0, 2, 3, 4, 5], [1, 2, 3, 4, 5]]).double()
    advantage = torch.tensor([[1.0] * 5, [-3.0] * 5]).double()
    bound = Bound.of("credit", {"name": "d3s_tokens", "first": 0.2, "last": 0.6})
    result, mask = bound(advantage, batch_of(entropy, step=0, steps=11))
    assert mask.nonzero().tolist() == [[1, 3], [1, 4]]
    assert (result != 0).sum() == 2
    assert bound(advantage, batch_of(entropy, step=5, steps=11))[1].sum() == 4
    assert bound(advantage, batch_of(entropy, step=10, steps=11))[1].sum() == 6


class TestDistributionCentric:
    def call(self, bound, advantage, success, entropy=0.2, copies=(1.1, 0.9)):
        rows = len(success)
        batch = Batch(
            mask=torch.ones(rows, 1, dtype=torch.bool), old_log_probs=torch.full((rows, 1), -1.0).double(),
            group=torch.zeros(rows, dtype=torch.long), success=torch.tensor(success).double(),
            columns={
                "entropy": torch.full((rows, 1), entropy).double(),
                "hot_log_probs": torch.full((rows, 1), -1.0).double() + torch.tensor(copies[0]).log(),
                "cold_log_probs": torch.full((rows, 1), -1.0).double() + torch.tensor(copies[1]).log(),
            },
        )  # fmt: skip
        return bound(torch.tensor(advantage).double()[:, None], batch)[0][:, 0]

    def bound(self):
        return Bound.of("credit", {"name": "dcpo_distribution", "target": 0.5})

    def test_worked_numbers(self):
        close(self.call(self.bound(), [0.8, -0.8], [1, 0]), [0.85, -0.666667])

    def test_it_acts_on_the_last_batch_and_cools_above_the_target(self):
        bound = self.bound()
        self.call(bound, [0.8, -0.8], [1, 0], entropy=0.9)
        heated = self.call(bound, [0.8, -0.8], [1, 0], entropy=0.2)
        close(heated, [0.8 / 1.2 + 0.9 / 6, -0.666667])
        resumed = self.bound()
        resumed.state.load_state_dict({"previous": 0.2})
        close(self.call(resumed, [0.8, -0.8], [1, 0]), self.call(bound, [0.8, -0.8], [1, 0]).tolist())

    def test_nothing_right_leaves_the_advantage(self):
        close(self.call(self.bound(), [0.8, -0.8], [0, 0]), [0.8, -0.8])
