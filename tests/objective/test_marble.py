"""MARBLE's combination: worked numbers, limits, and what the trainer makes of it on a real model."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.advantages.marble import least_norm, marble
from mmrl.objective.advantages.multi_reward import gdpo_decoupled
from mmrl.objective.matching_objectives.forward_process import clipped_share
from mmrl.objective.shaping.metrics import flowse_grpo
from mmrl.objective.shaping.recap import recap
from mmrl.record import Batch

G1, G2 = torch.tensor([3.0, 0]), torch.tensor([-0.5, 1.0])


def gram(*gradients):
    stacked = torch.stack(gradients).double()
    return stacked @ stacked.T


def direction(*gradients):
    mixture = marble()
    mixture.weights = {str(k): 1 / len(gradients) for k in range(len(gradients))}
    factors, conflict = mixture.combine(gram(*gradients))
    return sum(f * g for f, g in zip(factors, gradients, strict=True)), conflict


def test_two_rewards_by_hand():
    """alpha = (.5, .5): (.27639, .44721) has the dot .27639 with both units, where the plain sum has -.22361 with the
    second; the mean norm is 2.05902."""
    found, conflict = direction(G1, G2)
    assert found.tolist() == pytest.approx([0.56910, 0.92082], abs=1e-5)
    unit1, unit2 = G1 / G1.norm(), G2 / G2.norm()
    assert float(found @ unit1) == pytest.approx(float(found @ unit2), abs=1e-6)
    assert float((G1 + G2) @ unit2) < 0 and conflict == pytest.approx(-0.44721, abs=1e-5)


def test_three_rewards_by_hand():
    units = [*torch.eye(3)[:2].tolist(), [-0.6, 0, 0.8]]
    alpha = least_norm(gram(*map(torch.tensor, units)))
    assert alpha.tolist() == pytest.approx([0.41667, 0.16667, 0.41667], abs=1e-5)
    combined = torch.tensor(units, dtype=torch.float64).T @ alpha
    assert (torch.tensor(units, dtype=torch.float64) @ combined).tolist() == pytest.approx([1 / 6] * 3)


@pytest.mark.parametrize(
    ("units", "alpha"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [0.5, 0.5]),  # opposed: no step harms neither but none
        ([[1.0, 0.0], [1.0, 0.0]], [0.5, 0.5]),  # the same twice
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [0.5, 0.5, 0.0]),  # 0 lies between the first two
    ],
)
def test_gradients_that_are_opposed_or_equal(units, alpha):
    assert least_norm(gram(*map(torch.tensor, units))).tolist() == pytest.approx(alpha, abs=1e-9)


def test_opposed_rewards_make_no_step():
    found, conflict = direction(torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0]))
    assert found.tolist() == pytest.approx([0, 0], abs=1e-9) and conflict == pytest.approx(-1)


def test_against_a_search_over_the_simplex():
    for seed in range(5):
        rows = torch.nn.functional.normalize(
            torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).double() + 0.3, dim=1
        )
        g = rows @ rows.T
        alpha = least_norm(g)
        tried = torch.distributions.Dirichlet(torch.ones(4, dtype=torch.float64)).sample((20_000,))
        values = ((tried @ g) * tried).sum(1)
        assert float(alpha @ g @ alpha) <= float(values.min()) + 1e-9
        assert float(alpha.sum()) == pytest.approx(1) and float(alpha.min()) >= 0
        assert bool((g @ alpha >= alpha @ g @ alpha - 1e-9).all()), "no reward that is left out is harmed"


def test_a_reward_without_gradient_takes_no_part_and_the_average_keeps_it():
    mixture = marble(memory=0.7)
    mixture.weights = {"a": 0.0, "b": 1.0, "c": 0.0}
    found, _ = mixture.combine(gram(G1, torch.zeros(2), G2))
    assert found[1] == 0 and mixture.weights["b"] == pytest.approx(0.7)
    assert mixture.weights["a"] == pytest.approx(0.15)
    assert least_norm(torch.zeros(2, 2)).tolist() == [0, 0]


def test_the_moving_average():
    mixture = marble(memory=0.7)
    mixture.weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    mixture.combine(gram(torch.tensor([1.0, 0, 0]), torch.tensor([0.01, 0, 0]), torch.tensor([1.0, 0, 0])) * 0)
    assert mixture.weights == pytest.approx({"a": 0.14, "b": 0.35, "c": 0.21}), "no signal at all: all fade alike"


def test_the_mixed_advantage_is_the_mixed_gradient_of_a_loss_affine_in_it():
    """A = (1, -2, 3), abar = (.2, .5, .3): r = .51 from the sum and from the parts."""
    parts, weights = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.2, 0.5, 0.3])
    share = (clipped_share((weights * parts).sum(), 5.0) + 1) / 2
    assert float(share) == pytest.approx(0.51)
    assert float((weights * (clipped_share(parts, 5.0) + 1) / 2).sum()) == pytest.approx(0.51)


def batch(**components):
    rows = len(next(iter(components.values())))
    values = {name: torch.tensor(each) for name, each in components.items()}
    mask = torch.ones(rows, 2, dtype=torch.bool)
    return Batch(
        group=torch.zeros(rows, dtype=torch.long), mask=mask, old_log_probs=torch.zeros(rows, 2),
        reward=sum(values.values()), components=values,
    )  # fmt: skip


def test_rewards_are_taken_and_not_the_parts_that_they_tell():
    """By everything that combines the run's rewards without being given their names."""
    two = batch(**{"a/x": [0.0, 1.0], "a/y": [1.0, 0.0], "a": [0.0, 1.0], "b": [1.0, 0.0]})
    apart = batch(a=[0.0, 1.0], b=[1.0, 0.0])
    assert list(marble().split(two)) == ["a", "b"]
    assert list(marble(rewards=["a/x", "b"]).split(two)) == ["a/x", "b"]
    assert list(marble().split(batch(**{"a/x": [0.0, 1.0], "a/y": [1.0, 0.0]}))) == ["a/x", "a/y"], "one has its parts"
    one = batch(**{"a": [0.0, 1.0], "a/x": [0.0, 1.0], "a/y": [1.0, 0.0], "a/success": [1.0, 1.0]})
    assert list(marble().split(one)) == ["a/x", "a/y"], "and not their sum beside them"
    bare = batch(**{"a": [0.0, 1.0], "b": [1.0, 0.0], "c/x": [0.0, 1.0], "c/y": [1.0, 1.0]})
    assert list(marble().split(bare)) == ["a", "b", "c/x", "c/y"], "a reward of nothing but parts is not dropped"
    for combine in (flowse_grpo, gdpo_decoupled, recap()):
        assert torch.equal(combine(two), combine(apart))


def test_advantages_are_normalised_apart_and_mixed():
    mixture = marble(eps=0.0)
    rows = batch(a=[0.0, 1.0, 0.0, 1.0], b=[5.0, 5.0, 5.0, 5.0], c=[10.0, 0.0, 0.0, 10.0])
    assert mixture.split(rows)["a"].tolist() == [-1, 1, -1, 1] and mixture.split(rows)["b"].tolist() == [0] * 4
    assert mixture(rows).tolist() == pytest.approx([0, 0, -2 / 3, 2 / 3])
    assert [mixture.due(u) for u in (0, 1, 10)] == [True, False, True]


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(ConfigError, match="2 to 10 rewards, got 1"):
        marble().split(batch(a=[0.0, 1.0]))
    with pytest.raises(ConfigError, match="color"):
        marble(rewards=["a", "colour"]).split(batch(a=[0.0, 1.0], color=[1.0, 0.0]))
    with pytest.raises(ConfigError, match="every=0"):
        marble(every=0)
