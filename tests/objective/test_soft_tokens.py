"""Soft tokens: worked numbers of their density and mix, and which policy a ratio of theirs asks for."""

from __future__ import annotations

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.soft_tokens import soft_token_log_prob, soft_token_mix
from tests.objective.small import close


@pytest.mark.parametrize("u, density", [(0.0, -1.0), (1.0, -1.367879), (-1.5, -2.981689)])
def test_soft_token_density(u, density):
    log_probs = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    assert soft_token_log_prob(log_probs, log_probs + u).item() == pytest.approx(density, abs=1e-5)


def test_soft_tokens_leave_unlikely_ids_out_and_peak_where_they_were_drawn():
    log_probs = torch.tensor([0.98, 0.02], dtype=torch.float64).log()
    unlikely = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert soft_token_log_prob(log_probs, log_probs + unlikely).item() == pytest.approx(-1.0, abs=1e-4)
    even = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    at_zero = soft_token_log_prob(even, even)
    assert all(soft_token_log_prob(even, even + u) < at_zero for u in (-0.5, 0.5))


def test_soft_token_mixes_are_gumbel_softmax():
    log_probs = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    gumbels, mix = soft_token_mix(log_probs, torch.full((2,), math.exp(-1), dtype=torch.float64), 1.0)
    assert close(gumbels, log_probs) and close(mix, [0.7, 0.3])


def test_the_ratio_is_refused_where_the_likelihood_keeps_no_ids_of_a_mixture():
    from mmrl.policies.registry import policy_class
    from mmrl.training.passes import plan_passes

    objective = Objective.of({"ratio": "soft_token"})
    with pytest.raises(ConfigError, match="'soft_token' needs 'kept_log_probs', which the vlm policy does not offer"):
        plan_passes(objective, policy_class("vlm"))
