"""DGPO and TW-GRPO: worked numbers of the specs."""

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.divergence import position_divergence, squared_hellinger
from mmrl.record import Batch
from mmrl.stages import Bound


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch_of(mask=None, shape=(1, 3), **fields) -> Batch:
    mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    return Batch(mask=mask, old_log_probs=torch.zeros(mask.shape).double(), **fields)


class TestDistributionGuided:
    old = rows([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.98, 0.01, 0.01])
    reference = rows([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.6, 0.2, 0.2])

    def columns(self):
        entropy = -(self.old * self.old.log()).sum(1) / math.log(3)
        return {"divergence": squared_hellinger(self.old, self.reference)[None], "normalized_entropy": entropy[None]}

    def test_worked_numbers(self):
        columns = self.columns()
        torch.testing.assert_close(columns["divergence"][0, [0, 2]], rows(0.022022, 0.143746), atol=1e-6, rtol=0)
        weight, _ = Bound.of("credit", "dgpo")(torch.ones(1, 3).double(), batch_of(columns=columns))
        torch.testing.assert_close(weight, rows([1.011631, 0.979629, 1.008740]), atol=1e-6, rtol=0)

    def test_the_reference_itself_gives_weight_one_and_padding_changes_nothing(self):
        mask = torch.tensor([[True, True, False]])
        columns = {"divergence": torch.zeros(1, 3).double(), "normalized_entropy": torch.ones(1, 3).double()}
        weight, _ = Bound.of("credit", "dgpo")(rows([1.0, 1, 0]), batch_of(mask, columns=columns))
        torch.testing.assert_close(weight, rows([1.0, 1, 0]))

    def test_gaussian_steps_have_a_closed_form(self):
        bound = Bound.of("credit", {"name": "dgpo", "divergence": "gaussian_kl", "kappa": 0})
        assert set(bound.needs) == {"divergence"}
        kl = rows([0.5**2 / 2, 0.0])  # mean shift .5, spread 1
        assert -torch.expm1(-kl[0, 0] / 4).item() == pytest.approx(0.030767, abs=1e-6)
        weight, _ = bound(torch.ones(1, 2).double(), batch_of(shape=(1, 2), columns={"divergence": kl}))
        expected = 2 * torch.softmax(rows([0.030767, 0.0]) / 0.5, 1)
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)

    def test_unknown_divergence(self):
        with pytest.raises(ConfigError, match="hellinger"):
            Bound.of("credit", {"name": "dgpo", "divergence": "kl"})(rows([1.0]), batch_of(shape=(1, 1)))


class TestFocusedThinking:
    def test_worked_numbers(self):
        uniform = [1 / 3] * 3
        same = [0.2, 0.3, 0.5]
        probabilities = rows([same, [0.9, 0.05, 0.05], uniform], [same, [0.1, 0.8, 0.1], [1, 0, 0]])
        mask = torch.tensor([[True, True, True], [True, True, False]])
        divergence = position_divergence((probabilities + 1e-30).log(), mask)
        torch.testing.assert_close(divergence, rows(0.0, 1.852, 0.0), atol=1e-3, rtol=0)
        batch = batch_of(mask, group=torch.tensor([0, 0]), columns={"group_divergence": divergence.expand(2, 3) * mask})
        weight, _ = Bound.of("credit", "tw_grpo")(torch.ones(2, 3).double() * mask, batch)
        torch.testing.assert_close(weight, rows([1, 1.7, 1], [1, 1.7, 0]), atol=1e-6, rtol=0)

    def test_a_group_of_one_is_left_alone(self):
        logits = torch.log_softmax(torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).double(), -1)
        divergence = position_divergence(logits, torch.ones(1, 3, dtype=torch.bool))
        weight, _ = Bound.of("credit", "tw_grpo")(
            torch.ones(1, 3).double(), batch_of(columns={"group_divergence": divergence[None]})
        )
        torch.testing.assert_close(weight, torch.ones(1, 3).double())

    def test_kl_weighs_terms_with_the_own_probability(self):
        p = torch.log_softmax(torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(1)).double(), -1)
        mask = torch.ones(4, 2, dtype=torch.bool)
        mean = p.mean(0)
        # sum_v p (exp(mean - p) - (mean - p) - 1) = sum exp(mean) + KL(p || mean) - 1
        expected = (mean.exp().sum(-1) + (p.exp() * (p - mean)).sum(-1) - 1).mean(0)
        torch.testing.assert_close(position_divergence(p, mask, "kl"), expected)
