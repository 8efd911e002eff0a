"""Lp-Reg and sequence unlikelihood."""

import math

import pytest
import torch

from mmrl.objective import Objective, compute
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


class TestLowProbability:
    def prepared(self, old, log_q, share=0.5, **fields):
        objective = Objective.of({"regularizers": [{"name": "lp_reg", "coefficient": 1.0, "share": share}]})
        need = next(iter(objective.regularizers[0].bound.needs.values()))
        batch = Batch(
            mask=torch.ones(old.shape, dtype=torch.bool), old_log_probs=old, advantage=-torch.ones_like(old),
            columns={need.key: log_q}, **fields,
        )  # fmt: skip
        return objective.prepare(batch)[0], objective.regularizers[0].bound

    old = rows([0.02, 0.03, 0.5, 0.9]).log()
    log_q = rows([0.09, 0.02, 0.6, 0.95]).log()

    def test_only_rare_negative_tokens_below_the_proxy_are_protected(self):
        batch, bound = self.prepared(self.old, self.log_q)
        penalty = bound(Evaluation(self.old), batch)
        assert penalty[0, 0].item() == pytest.approx(1.995923, abs=1e-6)
        assert (penalty[0, 1:] == 0).all(), "the second is above its proxy, the others are not rare"

    def test_gradient_raises_the_token_and_vanishes_at_the_proxy(self):
        batch, bound = self.prepared(self.old, self.log_q)
        new = self.old.clone().requires_grad_()
        bound(Evaluation(new), batch).sum().backward()
        assert new.grad[0].tolist() == pytest.approx([1 - 0.09 / 0.02, 0, 0, 0])
        almost = self.log_q.clone() - 1e-9
        almost.requires_grad_()
        penalty = bound(Evaluation(almost), batch).sum()
        penalty.backward()
        assert penalty.item() == pytest.approx(0) and almost.grad.abs().max() < 1e-8

    def test_implausible_tokens_positive_tokens_and_single_tokens_are_left_alone(self):
        batch, bound = self.prepared(self.old, torch.full_like(self.old, -1e4))
        assert (bound(Evaluation(self.old), batch) == 0).all()
        batch, bound = self.prepared(self.old, self.log_q, share=0.25)
        assert (bound(Evaluation(self.old), batch) == 0).all(), "one token at hand is none"

    def test_each_optimizer_step_chooses_its_own(self):
        old = torch.cat([self.old, self.old + 0.001])
        batch, _ = self.prepared(old, self.log_q.repeat(2, 1), update=torch.tensor([0, 1]))
        assert batch.columns["lp_reg_chosen"].sum(1).tolist() == [2, 2]

    def test_under_the_papers_clip_a_negative_token_is_never_clipped(self):
        new = self.old + rows([3.0, -5.0, 0.5, 0.0])
        batch = {
            "mask": torch.ones(1, 4, dtype=torch.bool), "old_log_probs": self.old,
            "advantage": -torch.ones(1, 4).double(),
        }  # fmt: skip
        wide = compute({"trust_region": {"name": "clip", "low": 1.0, "high": 9.0}}, batch, new)
        torch.testing.assert_close(wide, compute({"trust_region": "none"}, batch, new))


class TestUnlikelihood:
    def penalty(self, log_probs, success):
        batch = Batch(
            mask=torch.ones(log_probs.shape, dtype=torch.bool), old_log_probs=log_probs.detach(),
            success=torch.tensor(success).double(),
        )  # fmt: skip
        return Bound.of("regularizer", "sequence_unlikelihood")(Evaluation(log_probs), batch)

    def test_worked_numbers(self):
        penalty = self.penalty(rows([-0.4, -0.6], [-2.0, -2.0], [-0.5, -0.5]), [0.0, 0.0, 1.0])
        assert penalty[:, 0].tolist() == pytest.approx([0.932752, 0.145414, 0.0], abs=1e-6)

    def test_gradient_is_largest_for_confident_errors_and_finite_for_sure_ones(self):
        log_probs = rows([-0.5], [-2.0], [0.0]).requires_grad_()
        self.penalty(log_probs, [0.0, 0.0, 0.0]).sum().backward()
        expected = [math.exp(l) / (1 - math.exp(l)) for l in (-0.5, -2.0)]
        assert log_probs.grad[:2, 0].tolist() == pytest.approx(expected)
        assert torch.isfinite(log_probs.grad).all()
