"""THR, DelTA, ResRL: the mathematics on hidden states, and the credit their columns give."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.representation import discriminative_weights, residual_weights, token_hidden_reward
from mmrl.policies.registry import policy_class
from mmrl.record import Batch
from mmrl.stages import Bound


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


class TestTokenHiddenReward:
    errors = rows([0.4, -0.3, -0.1], [-0.2, 0.3, -0.1], [0.5, -0.4, -0.1])
    hidden = rows([1.0, 0], [0, 1], [1, 1])

    def test_worked_scores(self):
        scores = token_hidden_reward(self.errors, self.hidden, torch.tensor([True, True, False]))
        close(scores, [0.26, 0.14, 0.12])

    def credit(self, pull, success, advantage, **parameters):
        batch = Batch(
            mask=torch.ones(len(pull), 1, dtype=torch.bool), old_log_probs=torch.zeros(len(pull), 1).double(),
            group=torch.zeros(len(pull), dtype=torch.long), reward=torch.tensor(success).double(),
            success=torch.tensor(success).double(), 
            columns={"token_hidden_reward": torch.tensor(pull).double()[:, None]},
        )  # fmt: skip
        advantage = torch.tensor(advantage).double()[:, None]
        return (Bound.of("credit", {"name": "thr", **parameters})(advantage, batch)[0] / advantage)[:, 0]

    def test_nthr_softens_wrong_tokens_above_the_anchor_only(self):
        close(self.credit([0.26, 0.14, 0.12], [1, 1, 0], [1, 1, -1], mode="nthr"), [1, 1, 1])
        close(self.credit([0.26, 0.14, 0.30], [1, 1, 0], [1, 1, -1], mode="nthr"), [1, 1, 2 * abs(0.5 - 2 / 3)])

    def test_thr_steers_by_the_sign_of_the_influence(self):
        close(self.credit([0.26, 0.14, 0.30], [1, 1, 0], [1, 1, -1]), [1.1, 0, 0.9])
        close(self.credit([0.26, 0.14, 0.30], [1, 1, 0], [1, 1, -1], steer=-0.1), [0.9, 0, 1.1])
        close(self.credit([0.26, 0.14, 0.30], [1, 1, 0], [1, 1, -1], mask_small=False), [1.1, 1, 0.9])

    def test_a_group_with_one_side_is_left_alone(self):
        close(self.credit([0.2, 0.1], [1, 1], [1, 1]), [1, 1])
        close(self.credit([0.2, 0.1], [0, 0], [-1, -1], mode="nthr"), [1, 1])


def weights(proxies, advantage, size=2, **parameters):
    """DelTA's weights of tokens whose vectors come `size` at a time."""
    places = torch.arange(len(proxies)).split(size)
    return discriminative_weights(lambda: [(p, proxies[p]) for p in places], rows(*advantage), **parameters)


class TestDiscriminative:
    def test_worked_numbers(self):
        proxies = rows([1.0, 0], [0, 1], [-1, 0], [0, 1])
        for size in (1, 3, 4):
            close(weights(proxies, [1.0, 1, -1, -1], size), [1.078796, 0.921204, 1.078796, 0.921204])

    def test_every_step_of_the_worked_example(self):
        """Margins 2 and 0, deviation 1, gates .880797 and .5, refined centroid (.637890, .362110), margin 2.551561."""
        proxies = rows([1.0, 0], [0, 1], [-1, 0], [0, 1])
        gate = torch.sigmoid(torch.tensor([2.0, 0.0]).double())
        close(gate, [0.880797, 0.5])
        centre = (gate[:, None] * proxies[:2]).sum(0) / gate.sum()
        close(centre, [0.637890, 0.362110])
        other = centre * torch.tensor([-1.0, 1.0])
        margin = ((proxies[0] - other) ** 2).sum() - ((proxies[0] - centre) ** 2).sum()
        assert margin.item() == pytest.approx(2.551561, abs=1e-6)
        raw = 0.8 + 0.4 * torch.sigmoid(margin)
        assert raw.item() == pytest.approx(1.171071, abs=1e-6)
        close(weights(proxies, [1.0, 1, -1, -1])[:1], [2 * raw.item() / (raw.item() + 1.0)])

    def test_ranks_that_add_up_agree_with_one(self):
        """Two halves of the tokens, each with the sums of both: what a rank sees of the others."""
        g = torch.Generator().manual_seed(3)
        proxies, advantage = torch.randn(12, 5, generator=g).double(), torch.randn(12, generator=g).double()
        whole = discriminative_weights(lambda: [(torch.arange(12), proxies)], advantage, rounds=2)
        asked: list[torch.Tensor] = []
        discriminative_weights(
            lambda: [(torch.arange(12), proxies)], advantage, rounds=2, total=lambda v: (asked.append(v), v)[1]
        )
        answers = iter(asked)
        half = discriminative_weights(
            lambda: [(torch.arange(6), proxies[:6])], advantage[:6], rounds=2, total=lambda v: next(answers)
        )
        close(half, whole[:6].tolist())

    def test_one_side_only_weighs_one_and_zero_advantage_is_lowest(self):
        proxies = rows([1.0, 0], [0, 1], [-1, 0], [0, 1], [0.3, 0.3])
        close(weights(proxies[:2], [1.0, 1]), [1, 1])
        weight = weights(proxies, [1.0, 1, -1, -1, 0])
        assert weight.argmin() == 4 and weight.mean().item() == pytest.approx(1)


class TestResidual:
    def test_inside_the_subspace_weighs_least(self):
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(2, 8, generator=generator).double()
        positive = torch.randn(20, 2, generator=generator).double() @ basis
        positive = torch.nn.functional.layer_norm(positive, (8,))
        outside = torch.randn(6, 8, generator=generator).double()
        negative = torch.cat([positive[:4], outside])
        weight = residual_weights(positive, negative, rank=2)
        close(weight[:4], [0.1] * 4)
        assert weight.min() >= 0.1 - 1e-9 and weight.max() <= 1 + 1e-9 and weight[4:].max() > 0.5

    def test_degenerate_cases(self):
        states = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
        close(residual_weights(states[:3], states), [1.0] * 5)
        close(residual_weights(states, states[:1].repeat(3, 1), rank=2), [0.55] * 3)

    def test_credit_scales_right_rollouts_and_weighs_wrong_tokens(self):
        batch = Batch(
            mask=torch.ones(2, 2, dtype=torch.bool), old_log_probs=torch.zeros(2, 2),
            columns={"residual_weight": rows([0.5, 0.5], [0.2, 1.0])},
        )  # fmt: skip
        result, _ = Bound.of("credit", "resrl")(rows([2.0, 2], [-1, -1]), batch)
        close(result, [[0.2, 0.2], [-0.2, -1.0]])


@pytest.mark.parametrize("name", ["thr", "delta", "resrl"])
def test_policies_that_do_not_offer_the_probe_refuse_the_recipe(name):
    for need in Bound.of("credit", name).needs.values():
        with pytest.raises(ConfigError, match=need.probe):
            policy_class("flow").check_need(need, f"credit {name!r}")
