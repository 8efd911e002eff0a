"""Selftok: a policy gradient without a ratio, held to the policy that sampled."""

from __future__ import annotations

import math

import pytest
import torch

from mmrl.objective import compute
from mmrl.objective.regularizers.selftok import selftok
from mmrl.recipes import load_recipe
from mmrl.record import Evaluation
from tests.objective.small import rows


def test_the_penalty_by_hand():
    """d = lp_new - lp_old = .5: exp(-.5) - 1 + .5, with gradient 1 - exp(-.5); none where nothing moved."""
    batch, new = rows([[0.0, 0.0]])
    moved = new + torch.tensor([[0.5, 0.0]])
    value = selftok(Evaluation(moved), batch)
    (gradient,) = torch.autograd.grad(value.sum(), new)
    assert value[0].tolist() == pytest.approx([math.exp(-0.5) - 0.5, 0.0], abs=1e-6)
    assert gradient[0].tolist() == pytest.approx([1 - math.exp(-0.5), 0.0], abs=1e-6)


def loss_of(tokens: torch.Tensor, moved: float):
    """Loss and gradient of two rows of two actions each, rewards 1 and 0."""
    old = torch.full((2, 2), -1.0, dtype=torch.float64)
    new = (old + moved).requires_grad_()
    batch = {
        "old_log_probs": old, "actions": tokens, "mask": torch.ones(2, 2, dtype=torch.bool),
        "reward": torch.tensor([1.0, 0.0]), "group": torch.tensor([0, 0]),
    }  # fmt: skip
    loss = compute(load_recipe("selftok").objective, batch, new)
    return float(loss.detach()), torch.autograd.grad(loss, new)[0]


def test_the_first_update_is_reinforce_with_the_groups_baseline():
    """Advantages +-1, each token a quarter of the loss: the penalty adds nothing yet."""
    _, gradient = loss_of(torch.tensor([[5, 6], [7, 8]]), 0.0)
    assert gradient.flatten().tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25], abs=1e-6)


def test_away_from_it_no_ratio_enters_and_the_penalty_does():
    """Every log-prob .5 higher: still A grad log pi, where a ratio would have scaled by exp(.5); + .04 (1 - e^-.5)."""
    _, gradient = loss_of(torch.tensor([[5, 6], [7, 8]]), 0.5)
    pull = 0.25 * 0.04 * (1 - math.exp(-0.5))
    assert gradient[:, 0].tolist() == pytest.approx([-0.25 + pull, 0.25 + pull], abs=1e-6)


def test_which_tokens_they_are_does_not_matter():
    """Codes of a picture lie behind the words of the vocabulary: equal log-probs, equal loss."""
    words, codes = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[32768, 40000], [50000, 60000]])
    (a, gradient), (b, other) = loss_of(words, 0.3), loss_of(codes, 0.3)
    assert a == b and torch.equal(gradient, other)
