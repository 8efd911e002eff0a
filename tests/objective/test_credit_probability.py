"""Delta-log-p and FIPO."""

import torch

from mmrl.objective import Objective
from mmrl.objective.credit.probability import extrapolated_log_probs
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch_of(old) -> Batch:
    return Batch(mask=torch.ones(old.shape, dtype=torch.bool), old_log_probs=old)


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, rows(expected), atol=atol, rtol=0)


def test_delta_log_p_weights():
    weight, _ = Bound.of("credit", "delta_log_p")(torch.ones(1, 3).double(), batch_of(rows([0.9, 0.5, 0.1]).log()))
    close(weight, [1.02, 1.1, 1.18])


class TestFutureInfluence:
    shift = rows([0.1, 0, -0.3, 0.05])

    def weight(self, advantage=1.0, shift=None, **parameters):
        shift = self.shift if shift is None else shift
        bound = Bound.of("credit", {"name": "fipo", **parameters})
        batch = batch_of(torch.full_like(shift, -1))
        result, _ = bound(torch.full_like(shift, advantage), Evaluation(shift - 1), batch)
        return result / advantage

    def test_worked_numbers(self):
        close(self.weight(half_life=1), [1.031743, 1, 1, 1.051271])
        close(self.weight(half_life=1, high_only=False), [1.031743, 0.871534, 0.8, 1.051271])
        far = self.weight(half_life=32, high_only=False, eps=0.9)
        close(far.log(), [-0.140427, -0.245691, -0.251071, 0.05])

    def test_identity_on_policy(self):
        close(self.weight(shift=torch.zeros(1, 4).double()), [1, 1, 1, 1])

    def test_large_ratios_do_not_count_and_wrong_ones_are_kept_safe(self):
        wild = rows([0.0, 3.0])
        close(self.weight(shift=wild, half_life=1, drop_above=10), [1, 1])
        close(self.weight(shift=wild, half_life=1), [1.2, 1.2])
        close(self.weight(advantage=-1.0, shift=wild, half_life=1), [1.2, 1.0])
        close(self.weight(advantage=-1.0, shift=wild, half_life=1, safety=None), [1.2, 1.2])

    def test_it_acts_in_the_update_and_carries_no_gradient(self):
        objective = Objective.of({"advantage": "grpo", "credit": ["fipo"], "trust_region": "clip"})
        batch = Batch(
            mask=torch.ones(2, 4, dtype=torch.bool), old_log_probs=torch.full((2, 4), -1.0).double(),
            group=torch.tensor([0, 0]), reward=torch.tensor([1.0, 0.0]).double(),
        )  # fmt: skip
        prepared, weights = objective.prepare(batch)
        new = (self.shift.repeat(2, 1) - 1).requires_grad_()
        loss = objective.loss(Evaluation(new), prepared, weights).loss
        loss.backward()
        plain = Objective.of({"advantage": "grpo", "trust_region": "clip"})
        again = new.detach().clone().requires_grad_()
        plain.loss(Evaluation(again), prepared, weights).loss.backward()
        ratio = new.grad[0] / again.grad[0]
        close(ratio[None], self.weight()[0].tolist())


def test_extrapolation_goes_further_along_the_direction_of_training():
    base, tuned = rows(0.6, 0.3, 0.1).log(), rows(0.7, 0.25, 0.05).log()
    close(extrapolated_log_probs(tuned, base, 0.5).exp()[None], [0.741509, 0.223818, 0.034674])
    close(extrapolated_log_probs(tuned, base, 0.0).exp()[None], [0.7, 0.25, 0.05])
