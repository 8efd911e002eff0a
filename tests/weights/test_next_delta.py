"""NExt: rank-1 parts of updates, and a predictor that goes on with them."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.weights.next_delta import assembled, components, predicted


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_rank_one_delta_is_its_components():
    delta = 3 * torch.outer(matrix(5), matrix(4, seed=1))
    parts = components(delta)
    assert [tuple(parts[name].shape) for name in ("u", "s", "v")] == [(5,), (1,), (4,)]
    assert parts["u"].norm() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(assembled(parts, delta.shape), delta, atol=1e-5)
    turned = components(-delta)
    assert torch.allclose(turned["u"], parts["u"], atol=1e-5) and torch.allclose(turned["v"], -parts["v"], atol=1e-5)


def test_vectors_and_kernels_keep_their_shape():
    assert torch.equal(assembled(components(matrix(6)), torch.Size([6])), matrix(6))
    kernel = matrix(3, 2, 2, 2)
    assert assembled(components(kernel), kernel.shape).shape == kernel.shape


def test_predicted_directions_are_made_of_unit_length():
    parts = {"u": torch.tensor([3.0, 4.0]), "s": torch.tensor([2.0]), "v": torch.tensor([0.0, 7.0])}
    assert torch.allclose(assembled(parts, torch.Size([2, 2])), torch.tensor([[0.0, 1.2], [0.0, 1.6]]))


def test_a_planted_trajectory_goes_on():
    """theta_t = theta_0 + t u v^T: a leap of two checkpoints adds 2 u v^T, and the predictor finds nearly all of it."""
    u, v = matrix(4), matrix(3, seed=1)
    line = torch.stack([matrix(4, 3, seed=2) + t * torch.outer(u, v) for t in range(7)])
    (delta,) = predicted({"w": line}, 2, epochs=400, learning_rate=2e-3).values()
    wanted = 2 * torch.outer(u, v)
    assert (delta - wanted).norm() < 0.1 * wanted.norm()
    untaught = predicted({"w": line}, 2, epochs=0)["w"]
    assert (untaught - wanted).norm() > 0.5 * wanted.norm(), "without learning it does not"
    again = predicted({"w": line}, 2, epochs=3)["w"]
    assert torch.equal(again, predicted({"w": line}, 2, epochs=3)["w"])


def test_a_leap_needs_checkpoints_to_learn_from():
    with pytest.raises(ConfigError, match="at least 4 of them"):
        predicted({"w": matrix(4, 2, 2)}, 3)
