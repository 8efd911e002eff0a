"""Worked numbers of the KL estimators, off-policy pulls, imitation and LaSeR."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective, explain
from mmrl.objective.regularizers.kl import kl, kl_in_reward
from mmrl.objective.regularizers.off_policy import asymre, kl_convex, nll, opmd
from mmrl.objective.regularizers.self_reward import laser, laser_credit
from mmrl.record import Batch, Evaluation
from tests.objective.small import close, rows


def penalty(function, apart: float, **parameters) -> tuple[float, float]:
    """Value and gradient for one action whose current log-prob is `apart` above the reference."""
    batch, new = rows([[0.0]])
    batch.columns["ref_log_probs"] = batch.old_log_probs - apart
    value = function(Evaluation(new), batch, **parameters)
    (gradient,) = torch.autograd.grad(value.sum(), new)
    return value.item(), gradient.item()


@pytest.mark.parametrize(
    "estimator, apart, value, gradient",
    [
        ("k1", 0.1, 0.1, 1), ("k2", 0.1, 0.005, 0.1), ("k3", 0.1, 0.004837, 0.095163),
        ("k3", -0.1, 0.005171, -0.105171), ("k3", 0.5, 0.106531, 0.393469), ("k3_plus", 0.5, 0.106531, 0.5),
    ],
)  # fmt: skip
def test_estimators(estimator, apart, value, gradient):
    assert penalty(kl, apart, estimator=estimator) == pytest.approx((value, gradient), abs=1e-6)


def test_k3_is_never_negative():
    assert all(penalty(kl, x / 7)[0] >= 0 for x in range(-20, 21))


def test_importance_and_bound():
    batch, new = rows([[0.2]])
    batch.columns["ref_log_probs"] = batch.old_log_probs - 0.3
    value = kl(Evaluation(new), batch, importance=True)
    expected = math.exp(0.2) * (math.exp(-0.5) + 0.5 - 1)
    assert value.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(value.sum(), new)
    assert gradient.item() == pytest.approx(expected + math.exp(0.2) * (1 - math.exp(-0.5)))
    assert penalty(kl, -9.0, value_bound=10.0)[0] == 10
    with pytest.raises(ConfigError, match="did you mean"):
        penalty(kl, 0.0, estimator="k4")


def test_kl_in_the_reward():
    batch, _ = rows([[0.0, 0.0], [0.0]], reward=torch.tensor([1.0, 0.0]).double())
    batch.columns["ref_log_probs"] = batch.old_log_probs - torch.tensor([[0.1, 0.3], [0.5, 7.0]])
    assert close(kl_in_reward(batch, beta=0.5), [0.8, -0.25])


def test_pulls_towards_the_data():
    batch, new = rows([[0.3]])
    for function, value, gradient in ((opmd, 0.09, 0.6), (asymre, 0.7, -1)):
        result = function(Evaluation(new), batch)
        assert result.item() == pytest.approx(value)
        assert torch.autograd.grad(result.sum(), new)[0].item() == pytest.approx(gradient)


def test_the_kl_mix_stands_between_base_and_previous_policy():
    batch, new = rows([[0.2]])
    batch.columns["ref_log_probs"] = batch.old_log_probs - 0.3
    value = kl_convex(Evaluation(new), batch, share=0.25, estimator="k1")
    assert value.item() == pytest.approx(0.25 * 0.5 + 0.75 * 0.2)


def test_imitation_of_some_rows():
    batch, new = rows([[0.0], [0.0]], success=torch.tensor([1.0, 0.0]))
    batch.columns["expert"] = torch.tensor([False, True])
    assert close(nll(Evaluation(new), batch), [[1], [0]])
    assert close(nll(Evaluation(new), batch, rows="expert"), [[0], [1]])
    assert close(nll(Evaluation(new), batch, rows="all"), [[1], [1]])


def test_no_right_answer_means_no_imitation():
    batch, new = rows([[0.1], [0.2]], [1, -1], success=torch.zeros(2).double())
    config = {"regularizers": [{"name": "nll", "coefficient": 1.0, "aggregation": "rows_token_mean"}]}
    assert torch.equal(explain(config, batch, new).loss, explain({}, batch, new).loss)


def with_score(log_prob: float, success: float) -> tuple[Batch, Evaluation]:
    batch, new = rows([[0.0, 0.0]], [1.0], success=torch.tensor([success]).double())
    return batch, Evaluation(new, {"reserved_token": torch.tensor([log_prob]).double()})


def test_laser_fits_the_self_score_to_the_verifier():
    for log_prob, success, expected in ((-13, 1, 0), (-23, 0, 0), (-18, 1, 0.25)):
        batch, evaluation = with_score(log_prob, success)
        assert close(laser(evaluation, batch), [[expected] * 2])


def test_laser_reads_the_position_of_the_end_token():
    batch, new = rows([[0.0, 0.0], [0.0]], [1.0, 1.0], success=torch.tensor([1.0, 1.0]).double())
    at_positions = torch.tensor([[-99.0, -13.0], [-18.0, 0.0]]).double()
    assert close(laser(Evaluation(new, {"reserved_token": at_positions}), batch), [[0, 0], [0.25, 0]])


def test_laser_advantage_after_the_warm_up():
    batch, _ = rows([[0.0], [0.0]], [1.0, -1.0], step=300)
    batch.columns["reserved_token"] = torch.tensor([-23.0, -13.0]).double()
    mixed, _ = laser_credit(batch.advantage, batch, share=0.1)
    assert close(mixed, [[0.9 - 0.0707106], [-0.9 + 0.0707106]])
    assert torch.equal(laser_credit(batch.advantage, replace(batch, step=10))[0], batch.advantage)
    assert torch.equal(laser_credit(batch.advantage, batch, share=0.0)[0], batch.advantage)
    batch.columns["reserved_token"] = torch.tensor([-18.0, -18.1]).double()
    assert torch.equal(laser_credit(batch.advantage, batch)[0], batch.advantage), "self-scores hardly differ"


def test_a_regularizer_needs_a_coefficient():
    with pytest.raises(ConfigError, match="coefficient"):
        Objective.of({"regularizers": ["kl"]})
