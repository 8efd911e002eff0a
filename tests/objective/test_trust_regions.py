"""Worked numbers of the trust regions: the value of each action and its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.record import Evaluation
from tests.objective.small import close, log, pull, rows


def one(trust_region, ratio: float, advantage: float, **fields) -> tuple[float, float]:
    """Value and gradient of a single action with this ratio."""
    values, gradient = pull({"trust_region": trust_region}, [log(ratio)], [advantage], **fields)
    return values.item(), gradient.item()


@pytest.mark.parametrize(
    "ratio, advantage, value, gradient",
    [(1.5, 1, 1.2, 0), (1.5, -1, -1.5, -1.5), (0.5, 1, 0.5, 0.5), (0.5, -1, -0.8, 0)],
)
def test_clip_binds_on_one_side_for_each_sign(ratio, advantage, value, gradient):
    assert one("clip", ratio, advantage) == pytest.approx((value, gradient))


def test_dual_clip_bounds_negatives():
    dual = {"name": "clip", "dual": 3.0}
    assert one(dual, 4.0, -1) == pytest.approx((-3, 0))
    assert one(dual, 2.9, -1) == pytest.approx((-2.9, -2.9))
    assert one(dual, 4.0, 1) == one("clip", 4.0, 1)
    with pytest.raises(ConfigError, match="must exceed"):
        one({"name": "clip", "dual": 1.1}, 1.0, 1)


def test_insane_ratios_stay_finite():
    values, gradient = pull({"trust_region": "clip"}, [[900.0, -900.0]], [-1])
    assert torch.isfinite(values).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("ratio, expected", [(7.0, 5.0), (0.3, 0.3), (1.0, 1.0)])
def test_cispo_always_has_a_gradient(ratio, expected):
    assert one("cispo", ratio, 1)[1] == pytest.approx(expected)
    assert one("cispo", ratio, -1)[1] == pytest.approx(-expected)


def test_cispo_bounds_are_absolute():
    assert one({"name": "cispo", "low": 0.8, "high": 1.2}, 0.1, 1)[1] == pytest.approx(0.8)


def test_sapo():
    assert one("sapo", 1.0, 1) == pytest.approx((2, 1))
    assert one("sapo", 1.0, -1) == pytest.approx((-1.904762, -1), abs=1e-6)
    assert one("sapo", 1.5, 1) == pytest.approx((2.489837, 1.410022), abs=1e-6)
    assert one("sapo", 3.0, 1)[1] == pytest.approx(1.259923, abs=1e-6)
    assert one({"name": "sapo", "negative": 1.0}, 1.5, -1)[0] == pytest.approx(-2.489837, abs=1e-6)


@pytest.mark.parametrize(
    "ratio, advantage, gate", [(1, 1, 1), (0.5, 1, 1.120422), (2, 1, 0.199148), (0.5, -1, 0.339785), (2, -1, 1.082683)]
)
def test_vespo_gates(ratio, advantage, gate):
    assert one("vespo", ratio, advantage)[1] == pytest.approx(advantage * gate, abs=1e-6)


@pytest.mark.parametrize(
    "probability, low, high", [(0.9, 0.768742, 1.187184), (0.5, 0.5, 1.306226), (0.1, 0.5, 2), (0.01, 0.5, 5)]
)
def test_dcpo_bounds_follow_the_prior_probability(probability, low, high):
    old = math.log(probability)
    assert one("dcpo", 50.0, 1, old=old) == pytest.approx((high, 0), abs=1e-5)
    assert one("dcpo", 0.01, -1, old=old) == pytest.approx((-low, 0), abs=1e-5)
    assert one("dcpo", high - 0.01, 1, old=old)[1] > 0


def test_dcpo_caps_the_upper_bound():
    assert one("dcpo", 50.0, 1, old=math.log(1e-4))[0] == pytest.approx(10)


def test_gppo_keeps_a_bounded_gradient():
    assert one("gppo", 2.0, 1) == pytest.approx((1.28, 1.28))
    assert one("gppo", 0.5, -1) == pytest.approx((-0.8, -0.8))
    assert one("gppo", 4.0, -1) == pytest.approx((-3, 0)), "the dual clip still stops it"
    assert one({"name": "gppo", "high_push": 0.5}, 2.0, 1) == pytest.approx((1.28, 0.64))


def test_gmpo_clips_each_action_inside_the_mean():
    values, gradient = pull({"trust_region": "gmpo"}, [[0.6, 0.1]], [1])
    assert close(values, [[1.284025] * 2])
    assert close(gradient / 2, [[0, 1.284025 / 2]])
    values, _ = pull({"trust_region": {"name": "gmpo", "high": 9.0}}, [[0.6, 0.1]], [1])
    assert close(values, [[1.419068] * 2])


def test_holder_token_clips_before_the_power_mean():
    values, gradient = pull({"trust_region": {"name": "holder_token", "power": 1.0}}, [log(2, 1)], [1])
    assert close(values, [[1.1, 1.1]]) and close(gradient / 2, [[0, 0.5]])


def test_ctpo_bounds_widen_with_the_position():
    config = {"ratio": "ctpo", "trust_region": "ctpo"}
    apart = [[0.1, 0.1, -0.3, 0.0]]
    values, gradient = pull(config, apart, [1])
    upper = torch.exp(0.05 * torch.arange(1, 5).double().sqrt())
    assert close(upper.log(), [0.05, 0.0707107, 0.0866025, 0.1])
    assert close(values[0, :2], upper[:2]) and (gradient[0, :2] == 0).all() and (gradient[0, 2:] > 0).all()
    _, gradient = pull(config, apart, [-1])
    assert (gradient == 0).all(), "tokens 1 and 2 meet the dual clip, 3 and 4 the lower bound"


def test_ctpo_on_one_action_is_a_token_ratio_in_a_narrow_window():
    region = {"name": "ctpo", "dual": None}
    assert one(region, 2.0, 1)[0] == pytest.approx(1.0513, abs=1e-4)
    assert one(region, 0.5, -1)[0] == pytest.approx(-0.9753, abs=1e-4)


NSR = {"name": "nsr_rescue", "low": 0.2, "high": 0.28}


def expected_gradient(ratio: float, advantage: float) -> tuple[float, float]:
    """Share of rescued draws and mean gradient over a fine grid of draws."""
    grid = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    batch, new = rows([[math.log(ratio)] * 20000], [advantage])
    batch.columns["uniform"] = grid[None, :]
    objective = Objective.of({"trust_region": NSR})
    evaluation = Evaluation(new)
    values = objective.trust_region(objective.ratio(evaluation, batch), evaluation, batch)
    (gradient,) = torch.autograd.grad(values.sum(), new)
    return (gradient != 0).double().mean().item(), gradient.mean().item()


def test_nsr_gives_a_fading_second_chance():
    assert expected_gradient(1.4, 1) == pytest.approx((0.346939, 0.396898), abs=2e-4)
    assert expected_gradient(1.9, 1) == (0, 0)
    assert expected_gradient(0.7, -1) == pytest.approx((0.244898, -0.207673), abs=2e-4)
    assert expected_gradient(1.1, 1) == pytest.approx((1, 1.1)), "inside the bounds nothing is shaken"


def test_nsr_draws_the_same_numbers_in_every_micro_batch():
    fields = {"group": torch.tensor([3, 8]), "member": torch.tensor([0, 5]), "seed": 4, "step": 9}
    both, _ = pull({"trust_region": NSR}, [[0.3] * 6] * 2, [1, 1], **fields)
    for row in range(2):
        few = {k: v[[row]] if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
        alone, _ = pull({"trust_region": NSR}, [[0.3] * 6], [1], **few)
        assert torch.equal(alone[0], both[row])
    assert not torch.equal(both[0], both[1])


def test_etr_widens_with_the_advantage_and_with_mixed_groups():
    fields = {"reward": torch.tensor([1.0, 1, 0, 0]).double(), "group": torch.tensor([0, 1, 1, 2])}
    values, _ = pull({"trust_region": "etr"}, [log(9)] * 4, [1, 1, 4, 1], **fields)
    assert close(values[:, 0] / torch.tensor([1, 1, 4, 1]), [1.25, 1.375, 1.45, 1.25])


def test_sspo_widens_bounds_in_segments_of_high_entropy():
    columns = {
        "segment": torch.tensor([[0, 0, 1]]),
        "entropy": torch.tensor([[0.2, 0.4, 0.9]], dtype=torch.float64),
    }
    values, _ = pull({"trust_region": "sspo"}, [log(9, 9, 9)], [1], columns=columns)
    assert close(values, [[1 + 0.2 * 0.5, 1 + 0.2 * 0.5, 1 + 0.2 * 1.5]])


def test_dhpo_an_outlier_cannot_change_the_sequence_branch():
    mixed = {"name": "dhpo", "mix": 0.0, "sequence_low": 0.5, "sequence_high": 0.5}
    values, _ = pull({"trust_region": mixed}, [[0.3, -0.3]], [1])
    assert close(values, [[1.0, 1.0]])
    columns = {"entropy": torch.tensor([[1.0, 0.5]], dtype=torch.float64)}
    wide = {"name": "dhpo", "mix": "entropy", "low": 9, "high": 9, "sequence_low": 9, "sequence_high": 9}
    values, _ = pull({"trust_region": wide}, [[0.3, -0.3]], [1], columns=columns)
    assert close(values, [[math.exp(0.3), 0.5 * math.exp(-0.3) + 0.5]])


@pytest.mark.parametrize(
    "region, kept",
    [
        ("none", [1, 1, 1, 1, 1]),
        ("one_side", [1, 1, 1, 0, 0]),
        ("two_side", [0, 0, 1, 0, 0]),
        ("ring", [1, 0, 1, 0, 0]),
    ],
)
def test_rec_regions(region, kept):
    """Ratios .3 (far below), .7, 1, 1.5, 4 (far above) with a positive advantage."""
    _, gradient = pull({"trust_region": {"name": "rec", "region": region}}, [log(0.3, 0.7, 1, 1.5, 4)], [2])
    assert close(gradient, [[2.0 * k for k in kept]])


def test_the_ring_lets_far_negatives_come_back():
    _, gradient = pull({"trust_region": {"name": "rec", "region": "ring"}}, [log(0.3, 0.7, 1, 1.5, 4)], [-2])
    assert close(gradient, [[0, 0, -2, 0, -2]])


def test_rec_weights_by_the_advantage():
    red = {"name": "rec", "region": "none", "weight": "advantage", "temperature": 2.0}
    assert one(red, 3.0, 2)[1] == pytest.approx(2 * math.e)
    with pytest.raises(ConfigError, match="weight"):
        one({"name": "rec", "weight": "gae"}, 1.0, 1)


def test_minirl_weighs_by_the_whole_ratio_and_masks_like_ppo():
    sampler = {"sampler_log_probs": torch.tensor([[-1.5]], dtype=torch.float64)}
    assert one("minirl", 1.1, 1, columns=sampler)[1] == pytest.approx(1.1 * math.exp(0.5))
    assert one("minirl", 1.4, 1, columns=sampler)[1] == 0
    assert one("minirl", 1.1, 1)[1] == pytest.approx(1.1), "without the engine's log-probs: the unclipped ratio"
    assert one({"name": "minirl", "cap": 1.0}, 1.1, 1, columns=sampler)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("apart, weight", [(1.0, 1.9), (-4.0, 0.1), (0.3, math.exp(0.3))])
def test_a_lol_clips_the_weight_of_the_sequence(apart, weight):
    batch, new = rows([[0.0, 0.0]], [0.5])
    batch.columns["ref_log_probs"] = batch.old_log_probs - apart / 2
    objective = Objective.of({"trust_region": "a_lol"})
    values = objective.trust_region(objective.ratio(Evaluation(new), batch), Evaluation(new), batch)
    (gradient,) = torch.autograd.grad(values.sum(), new)
    assert close(gradient, [[0.5 * weight] * 2])


def elbo_bound(advantage: float, draws: list[float]) -> tuple[float, torch.Tensor]:
    batch, new = rows([draws], [advantage])
    objective = Objective.of({"trust_region": "bgpo", "aggregation": "sequence_mean"})
    values = objective.trust_region(objective.ratio(Evaluation(new), batch), Evaluation(new), batch)
    value = (objective.weights(batch) * values).sum()
    return value.item(), torch.autograd.grad(value, new)[0]


def test_bgpo_bounds_the_elbo_objective_from_below():
    draws, true = [0.1, -0.3], math.exp(-0.1)
    assert elbo_bound(1.0, draws)[0] == pytest.approx(0.9)
    assert elbo_bound(-1.0, draws)[0] == pytest.approx(-0.922995, abs=1e-6)
    assert elbo_bound(1.0, draws)[0] <= true and elbo_bound(-1.0, draws)[0] <= -true


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_bgpo_is_the_elbo_objective_on_policy(advantage):
    value, gradient = elbo_bound(advantage, [0.0] * 4)
    assert value == pytest.approx(advantage) and close(gradient, [[advantage / 4] * 4])
