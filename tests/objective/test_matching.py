"""Objectives on matching losses: numbers worked by hand, limiting cases, gradients against finite differences."""

import pytest
import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.matching_objectives.forward_process import awm, diffusion_nft, weighted_loss
from mmrl.objective.regularizers.matching import velocity_kl
from mmrl.objective.score_objectives.matching import crd, dgpo_direct, gdro, listwise
from mmrl.record import Batch, Evaluation

D = torch.float64


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)[:, None]


def batch(rows: int, advantage: Tensor | None = None, group: tuple[int, ...] = (), **columns: Tensor) -> Batch:
    made = Batch(torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows, 1, dtype=D), columns=columns)
    made.group = torch.tensor(group) if group else torch.zeros(rows, dtype=torch.long)
    made.advantage = advantage
    return made


def evaluation(**columns: Tensor) -> Evaluation:
    return Evaluation(torch.zeros(1), columns)


def differences(function, at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        apart = torch.zeros_like(at).view(-1)
        apart[i] = step
        found.view(-1)[i] = (function(at + apart.view_as(at)) - function(at - apart.view_as(at))) / (2 * step)
    return found


def gradient(function, at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    return found


class TestAWM:
    def test_loss_weightings_by_hand(self):
        t = torch.tensor([0.8], dtype=D)
        for loss, expected in ((0.5, 2.680749), (1.0, 3.189881)):
            assert weighted_loss(torch.tensor([loss], dtype=D), t, "ghuber").item() == pytest.approx(expected, abs=1e-6)
        quarter = torch.tensor([0.25], dtype=D)
        found = [weighted_loss(quarter, t, name).item() for name in ("uniform", "t", "t2", "huber")]
        assert found == pytest.approx([0.25, 0.2, 0.16, 0.8 * (0.5 - 1e-5)], abs=1e-8)

    def test_first_update_is_advantage_times_the_gradient_of_the_loss(self):
        """At the weights that sampled the ratio is 1: d objective / d l = -A w'(l), and A > 0 lowers the loss."""
        loss, made = column(0.5, 0.5), batch(2, column(5.0, -2.5), draw_times=column(0.8, 0.8))
        slope = gradient(lambda x: awm(evaluation(matching_loss=x), made, old="self").sum(), loss)
        steep = differences(lambda x: weighted_loss(x, torch.tensor([[0.8]], dtype=D), "ghuber").sum(), loss[:1])
        torch.testing.assert_close(slope, column(-1.0, 0.5) * steep, rtol=1e-6, atol=0)

    def test_clip_and_ratio(self):
        """uniform: l_old - l = log 1.5; A = 5 of 5 is 1. Clipped at 1.2 where the advantage is positive only."""
        made = batch(2, column(5.0, -5.0), draw_times=column(0.5, 0.5), old_matching_loss=column(1.0, 1.0))
        now = evaluation(matching_loss=1.0 - torch.log(column(1.5, 1.5)))
        found = awm(now, made, weighting="uniform", low=0.2, high=0.2, old="collected")
        assert found[:, 0].tolist() == pytest.approx([1.2, -1.5])
        assert awm(now, made, weighting="uniform", old="collected")[:, 0].tolist() == pytest.approx([1.5, -1.5])

    def test_gradient_of_the_free_ratio(self):
        made = batch(3, column(1.0, -2.0, 4.0), draw_times=column(0.9, 0.5, 0.2),
                     old_matching_loss=column(0.4, 0.5, 0.6))  # fmt: skip

        def total(x: Tensor) -> Tensor:
            return awm(evaluation(matching_loss=x), made, old="collected").sum()

        at = column(0.42, 0.49, 0.55)
        torch.testing.assert_close(gradient(total, at), differences(total, at), rtol=1e-5, atol=1e-8)


class TestDiffusionNFT:
    V_OLD, V = torch.tensor([0.2, -0.4], dtype=D), torch.tensor([1.0, 0.0], dtype=D)

    def plain(self, velocity: Tensor, share: float, mix: float = 0.5) -> Tensor:
        """The plain form on two latent elements, summed rather than averaged, times b: the paper's own scale."""
        errors = {
            name: (((1 - b) * self.V_OLD + b * velocity - self.V) ** 2).sum()[None, None]
            for name, b in (("positive", mix), ("negative", -mix))
        }
        made = batch(1, column((2 * share - 1) * 5.0))
        found = diffusion_nft(evaluation(**errors), made, mix=mix, weighted=False, space="velocity")
        return -found.sum() * mix / 5

    @pytest.mark.parametrize(("share", "expected"), [(1.0, [-0.8, -0.4]), (0.5, [0.0, 0.0])])
    def test_gradient_at_the_old_policy(self, share, expected):
        """2 b (2 r - 1) (v_old - v)"""
        assert gradient(lambda v: self.plain(v, share), self.V_OLD).tolist() == pytest.approx(expected, abs=1e-12)

    def test_minimum(self):
        """v_old + (2 r - 1) (v - v_old) / b: at r = .75 and b = .5 it is v."""
        best = torch.tensor([1.0, 0.0], dtype=D)
        assert gradient(lambda v: self.plain(v, 0.75), best).tolist() == pytest.approx([0, 0], abs=1e-12)
        off = torch.tensor([0.7, 0.3], dtype=D)
        found, expected = gradient(lambda v: self.plain(v, 0.75), off), differences(lambda v: self.plain(v, 0.75), off)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)

    def test_advantages_become_shares(self):
        """-6, -2.5, 0, 1, 5 of 5 are 0, .25, .5, .6, 1; E+ = 1, E- = 0, A_max / b = 5 / .1."""
        made = batch(5, column(-6.0, -2.5, 0.0, 1.0, 5.0))
        errors = evaluation(positive=torch.ones(5, 1, dtype=D), negative=torch.zeros(5, 1, dtype=D))
        found = diffusion_nft(errors, made, mix=0.1)
        assert (-found[:, 0] / 50).tolist() == pytest.approx([0, 0.25, 0.5, 0.6, 1])


class TestDGPO:
    def test_by_hand(self):
        """z = -1, w = .268941 and loss -.00268942; at the reference w is one half."""
        made = batch(2, column(1.0, -1.0), against=column(0.51, 0.51))
        assert dgpo_direct(-column(0.50, 0.52), made, clip=None).item() == pytest.approx(0.00268942, abs=1e-8)
        assert dgpo_direct(-column(0.51, 0.51), made, clip=None).item() == pytest.approx(0.0, abs=1e-12)
        slope = gradient(lambda s: dgpo_direct(s, made, clip=None), -column(0.51, 0.51))
        assert slope[:, 0].tolist() == pytest.approx([0.25, -0.25])

    def test_rows_that_have_gone_far_enough_do_not_train(self):
        """exp(.51 - .45) is past 1.01 for the better row; the worse one may still rise."""
        made = batch(2, column(1.0, -1.0), against=column(0.51, 0.51), anchor_matching_loss=column(0.51, 0.51))
        slope = gradient(lambda s: dgpo_direct(s, made, clip=1e-2), -column(0.45, 0.51))
        assert slope[0, 0] == 0 and slope[1, 0] < 0

    def test_gradient_with_the_weight_held(self):
        """sg(w): differences of the loss whose weight stays as it was; groups do not see each other."""
        made = batch(4, column(1.0, -1.0, 0.5, -0.5), (0, 0, 7, 7), against=column(0.5, 0.5, 0.3, 0.3))
        at = -column(0.48, 0.53, 0.31, 0.29)
        z = [50.0 * (-0.02 - 0.03), 50.0 * 0.5 * (0.01 + 0.01)]
        weight = torch.sigmoid(torch.tensor([z[0], z[0], z[1], z[1]], dtype=D))[:, None]
        held = differences(lambda s: (weight * made.advantage * s).mean(), at)
        torch.testing.assert_close(gradient(lambda s: dgpo_direct(s, made, clip=None), at), held, rtol=1e-6, atol=1e-9)


class TestCRD:
    def test_by_hand(self):
        """R = (1, 0, .5), rho = (.01, -.01, 0): mean of (.49^2, .49^2, 0) is .160067, times 5."""
        made = batch(3, column(5.0, -5.0, 0.0), anchor_loss=column(0.51, 0.51, 0.51))
        assert crd(-column(0.50, 0.52, 0.51), made).item() == pytest.approx(-0.160067 * 5, abs=5e-6)

    def test_nothing_is_left_where_the_implicit_reward_is_the_external_one(self):
        made = batch(3, column(5.0, -5.0, 0.0), anchor_loss=column(0.9, 0.9, 0.9))
        assert crd(-column(0.4, 1.4, 0.9), made).item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("loss", ["mse", "bce"])
    def test_gradient_with_the_centre_held(self, loss):
        made = batch(3, column(2.0, -3.0, 1.0), anchor_loss=column(0.5, 0.5, 0.5))
        at = -column(0.45, 0.52, 0.6)
        held = (at + 0.5).mean()

        def total(s: Tensor) -> Tensor:
            rho, wanted = s + 0.5 - held, made.advantage / 10 - (made.advantage / 10).mean()
            if loss == "bce":
                return -torch.nn.functional.binary_cross_entropy_with_logits(rho, torch.sigmoid(wanted)) * 5
            return -((rho - wanted) ** 2).mean() * 5

        torch.testing.assert_close(
            gradient(lambda s: crd(s, made, loss=loss), at), differences(total, at), rtol=1e-5, atol=1e-8
        )


class TestGDRO:
    @pytest.mark.parametrize(
        ("scores", "rewards", "temperature", "expected"),
        [
            ((0.4, -0.1), (1.0, 0.0), 0.001, 0.474077),
            ((0.2, -0.3, 0.5), (0.9, 0.5, 0.1), 0.5, 2.106427),
            ((0.0, 0.0, 0.0), (0.9, 0.5, 0.1), 0.5, 1.791759),
        ],
    )
    def test_listwise_by_hand(self, scores, rewards, temperature, expected):
        found = listwise(column(*scores), torch.tensor(rewards, dtype=D) / temperature)
        assert found.item() == pytest.approx(expected, abs=1e-6)

    def test_order_and_the_best_output(self):
        """A pair as DPO, whatever the order of its rows, and gamma times the loss of the better one."""
        made = batch(2, None, ref_matching_loss=column(0.5, 0.5))
        made.reward = torch.tensor([0.0, 1.0], dtype=D)
        found = gdro(-column(0.51, 0.46), made, beta=10.0, temperature=1e-3, gamma=0.5)
        assert found.item() == pytest.approx(-0.474077 - 0.5 * 0.46, abs=1e-6)

    def test_gradient(self):
        made = batch(5, None, (1, 1, 1, 4, 4), ref_matching_loss=column(0.5, 0.5, 0.5, 0.4, 0.4))
        made.reward = torch.tensor([0.3, 0.9, 0.9, 0.0, 0.2], dtype=D)
        at = -column(0.48, 0.5, 0.53, 0.42, 0.37)
        found = gradient(lambda s: gdro(s, made), at)
        torch.testing.assert_close(found, differences(lambda s: gdro(s, made), at), rtol=1e-5, atol=1e-7)

    def test_temperature_must_be_positive(self):
        made = batch(2, None, ref_matching_loss=column(0.5, 0.5))
        made.reward = torch.tensor([0.0, 1.0], dtype=D)
        with pytest.raises(ConfigError, match="temperature is 0"):
            gdro(column(0.0, 0.0), made, temperature=0.0)


def test_velocity_kl_holds_good_outputs_harder():
    """least .1: R = 1, 0, .5 weigh 1, .1, .55."""
    made, gap = batch(3, column(5.0, -5.0, 0.0)), evaluation(gap=torch.full((3, 1), 2.0, dtype=D))
    assert velocity_kl(gap, made, least=0.1)[:, 0].tolist() == pytest.approx([2.0, 0.2, 1.1])
    assert velocity_kl(gap, made)[:, 0].tolist() == [2.0, 2.0, 2.0]


def test_only_one_objective_replaces_ratio_and_clip():
    with pytest.raises(ConfigError, match=r"matching_objective 'awm' compares predictions.*trust_region clip"):
        Objective.of({"matching_objective": "awm", "trust_region": {"name": "clip", "low": 0.1}})
