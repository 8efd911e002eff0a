"""Worked numbers of the surrogate likelihoods, on hand-made scores and on a causal toy model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.policies.masked.likelihoods import (
    coupled,
    gauss_legendre,
    hide_share,
    left_to_right,
    monte_carlo,
    one_step,
    quadrature,
    random_share,
    surrogate,
)
from tests.objective.small import close

MASK = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])


class Recorder:
    """Scores -1.2 when everything is hidden, else -0.6; remembers what it was shown."""

    def __init__(self):
        self.shown: list[Tensor] = []

    def __call__(self, visible: Tensor, prompt_share: float) -> Tensor:
        self.shown.append(visible)
        return torch.where(visible.any(1, keepdim=True), -0.6, -1.2).expand(visible.shape)


def noise(draws: int, seed: int = 0) -> Tensor:
    return torch.rand(2, draws, 4, generator=torch.Generator().manual_seed(seed))


def test_one_step_hides_everything():
    score = Recorder()
    values, scored = one_step(score, MASK, noise(0))
    assert not score.shown[0].any()
    assert close(values, -1.2 * MASK.double()) and torch.equal(scored, MASK)


def test_coupled_masks_score_every_token_once():
    draws = noise(2)
    draws[:, 0] = (0.25 - 0.2) / 0.6
    draws[:, 1] = torch.tensor([[0.1, 0.9, 0.9, 0.9], [0.9, 0.1, 0.0, 0.0]])
    score = Recorder()
    values, _ = coupled(score, MASK, draws)
    assert close(values, [[-1.8, -1.0, -1.0, -1.0], [-1.0, -1.8, 0, 0]])
    first, second = score.shown[1:]
    assert torch.equal(first ^ second, MASK), "a token is visible in exactly one of the two"


def test_random_share_scores_what_it_hides():
    score = Recorder()
    values, scored = random_share(score, MASK, noise(2))
    assert torch.equal(score.shown[0], MASK & ~scored)
    assert torch.equal(values != 0, scored) and scored.any(1).all()
    later = Recorder()
    random_share(later, MASK, noise(2), step=1, steps=1)
    assert not later.shown[0].any(), "a share of one hides everything"


def test_quadrature_of_one_point_is_a_half_hidden_canvas():
    assert gauss_legendre(1) == ([0.5], [1.0])
    score = Recorder()
    values, _ = quadrature(score, MASK, noise(1), points=1)
    assert (MASK & ~score.shown[0]).sum(1).tolist() == [2, 1]
    assert close(values.sum(1), [2 * -0.6 / 0.5, -0.6 / 0.5])


def test_quadrature_integrates_polynomials_exactly():
    nodes, weights = gauss_legendre(3)
    assert sum(weights) == pytest.approx(1)
    assert sum(w * t**5 for t, w in zip(nodes, weights, strict=True)) == pytest.approx(1 / 6)


def test_hiding_a_share_counts_tokens():
    hidden = hide_share(MASK, torch.tensor([[0.3, 0.1, 0.9, 0.2]] * 2), 0.5)
    assert hidden.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert hide_share(MASK, noise(1)[:, 0], 0.01).sum(1).tolist() == [1, 1]


def test_monte_carlo_draws_stand_on_the_action_axis():
    values, scored = monte_carlo(Recorder(), MASK, noise(12), samples=6)
    assert values.shape == scored.shape == (2, 6)


class CausalToy(torch.nn.Module):
    """Bigram scores: what follows depends on the last visible token before a position."""

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
        self.tokens = tokens

    def __call__(self, visible: Tensor, prompt_share: float) -> Tensor:
        columns = []
        for t in range(self.tokens.shape[1]):
            previous = torch.where(visible[:, t - 1], self.tokens[:, t - 1], 5) if t else torch.full((2,), 5)
            columns.append(self.table[previous].log_softmax(-1).gather(1, self.tokens[:, t : t + 1])[:, 0])
        return torch.stack(columns, 1)


def test_left_to_right_is_the_likelihood_of_a_causal_model():
    tokens = torch.tensor([[0, 3, 1, 4], [2, 2, 0, 0]])
    toy = CausalToy(tokens)
    values, _ = left_to_right(toy, MASK, noise(0))
    previous = torch.cat([torch.full((2, 1), 5), tokens[:, :-1]], dim=1)
    expected = toy.table[previous].log_softmax(-1).gather(2, tokens[..., None])[..., 0] * MASK
    assert torch.allclose(values, expected)
    (a,), (b,) = (torch.autograd.grad(v.sum(), toy.table) for v in (values, expected))
    assert torch.allclose(a, b)


def test_an_unknown_surrogate_is_named():
    with pytest.raises(ConfigError, match="did you mean 'coupled'"):
        surrogate("couple")
    assert surrogate("quadrature", points=2).draws == 2
