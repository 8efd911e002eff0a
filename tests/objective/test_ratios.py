"""Worked numbers of the ratios."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import ratios
from mmrl.objective.ratios import annealed, log_power_mean, segments
from mmrl.record import Evaluation
from tests.objective.small import close, log, pull, rows

CLIP = {"name": "clip", "low": 0.2, "high": 0.2}


def value_and_gradient(function, log_ratios, **parameters):
    batch, new = rows([log_ratios], step=parameters.pop("step", 0), steps=parameters.pop("steps", 1))
    value = function(Evaluation(new), batch, **parameters)
    (gradient,) = torch.autograd.grad(value.exp()[0, 0], new)
    return value[0].detach(), gradient[0]


def test_gspo():
    values, gradient = pull({"ratio": "sequence", "trust_region": CLIP}, [[0.2, -0.1, 0.05]], [1])
    assert close(values, [[1.051271] * 3])
    assert close(gradient / 3, [[0.350424] * 3]), "d obj_i / d lp_it = A s / L"


def test_gspo_clips_a_whole_sequence_or_none():
    config = {"ratio": "sequence", "trust_region": {"name": "clip", "low": 0.01, "high": 0.02}}
    _, gradient = pull(config, [[0.2, -0.1, 0.05], [0.01, 0.0, 0.01]], [1, 1])
    assert (gradient[0] == 0).all() and (gradient[1] > 0).all()


def test_gspo_token_keeps_each_actions_own_gradient():
    batch, new = rows([[0.2, -0.1, 0.05]])
    value = ratios.gspo_token(Evaluation(new), batch).exp()
    (gradient,) = torch.autograd.grad(value[0, 1], new)
    assert close(value, [[1.051271] * 3]) and close(gradient, [[0, 1.051271, 0]])


def test_full_sequence_is_a_product():
    value, gradient = value_and_gradient(ratios.full_sequence, [0.2, -0.1, 0.05])
    assert close(value, [0.15] * 3) and close(gradient, [1.161834] * 3)


def test_ctpo_accumulates_the_prefix():
    batch, new = rows([[0.1, 0.1, -0.3, 0.0]])
    value = ratios.ctpo(Evaluation(new), batch)
    assert close(value, [[0.1, 0.2, -0.1, -0.1]])
    (gradient,) = torch.autograd.grad(value[0, 3], new)
    assert close(gradient, [[0, 0, 0, 1]]), "only through the action itself"
    assert close(ratios.ctpo(Evaluation(new), batch, mean=True), [[0.1, 0.1, -0.1 / 3, -0.025]])


@pytest.mark.parametrize(
    "power, mean", [(-2, 1.511858), (-1, 1.714286), (0, 2), (1, 2.333333), (2, 2.645751)]
)  # fmt: skip
def test_the_power_mean_of_1_2_4(power, mean):
    value, _ = value_and_gradient(ratios.holder, log(1, 2, 4), start=power, end=power)
    assert close(value.exp(), [mean] * 3)


@pytest.mark.parametrize("power, shares", [(1, [1, 2, 4]), (0, [7 / 3] * 3), (-1, [4, 2, 1])])
def test_its_gradient_is_a_share_of_each_action(power, shares):
    value, gradient = value_and_gradient(ratios.holder, log(1, 2, 4), start=power, end=power)
    assert close(gradient / value.exp(), torch.tensor(shares, dtype=torch.float64) / 7)


def test_the_power_mean_grows_with_the_power():
    apart, mask = torch.randn(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.bool)
    means = [float(log_power_mean(apart, mask, p)) for p in (-3, -1, -1e-9, 0, 1e-9, 1, 3)]
    assert means == sorted(means)


def test_the_power_falls_during_the_run():
    early, late = (
        value_and_gradient(ratios.holder, log(1, 2, 4), step=s, steps=11)[0].exp()[0] for s in (0, 10)
    )  # fmt: skip
    assert close(early, 2.645751) and close(late, 1.511858)
    assert [annealed(2, -2, 0.5, s) for s in ("constant", "linear", "cosine", "cubic")] == pytest.approx([2, 0, 0, 0])
    assert annealed(2, -2, 0.5, "quadratic") == 1.0
    with pytest.raises(ConfigError, match="expected one of"):
        annealed(1, 0, 0.5, "step")


def test_tokens_may_be_clamped_before_the_power_mean():
    value, gradient = value_and_gradient(ratios.holder, log(1, 2), start=1, end=1, token_clip=0.2)
    assert close(value.exp(), [1.1, 1.1]) and close(gradient, [0.5, 0])


def test_segments_are_cut_behind_separators_and_short_ones_merge():
    batch, _ = rows([[0] * 6, [0] * 3])
    batch.actions = torch.tensor([[7, 3, 7, 7, 3, 7], [3, 7, 7, 0, 0, 0]])
    assert segments(batch, (3,)).tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 1, -1, -1, -1]]
    assert segments(batch, (3,), shortest=2).tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, -1, -1, -1]]


def test_segment_ratios():
    batch, new = rows([[0.2, -0.1, 0.3]])
    batch.columns["segment"] = torch.tensor([[0, 0, 1]])
    assert close(ratios.segment(Evaluation(new), batch), [[0.05, 0.05, 0.3]])
    assert close(ratios.segment(Evaluation(new), batch, normalize=False), [[0.1, 0.1, 0.3]])
    (gradient,) = torch.autograd.grad(ratios.segment(Evaluation(new), batch)[0, 0], new)
    assert close(gradient, [[0.5, 0.5, 0]])


def test_segments_without_separators_say_what_is_missing():
    batch, new = rows([[0.0]])
    with pytest.raises(ConfigError, match="separators"):
        ratios.segment(Evaluation(new), batch)
