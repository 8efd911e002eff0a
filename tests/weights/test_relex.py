"""RELEX: the line of a trajectory, and where it leads."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.weights.relex import extrapolated, line_through


def test_a_line_is_followed_exactly():
    """d_t = 0.1 t u: all of it explained, and 2.0 u at step 20."""
    u = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = [1, 2, 5, 9]
    delta, explained = extrapolated(torch.stack([0.1 * t * u for t in steps]), steps, 20)
    assert explained == pytest.approx(1, abs=1e-12)
    assert torch.allclose(delta, 2.0 * u, rtol=1e-12)


def test_the_sign_of_the_direction_cancels():
    u = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sign in (1, -1):
        delta, _ = extrapolated(torch.stack([sign * t * u for t in (1, 2, 3)]), [1, 2, 3], 6)
        assert torch.allclose(delta, 6 * sign * u)


def test_what_stands_still_stays():
    still = torch.ones(4, 6, dtype=torch.float64)
    line = line_through(still, [1, 2, 3, 4])
    assert line.slope == pytest.approx(0, abs=1e-12) and torch.allclose(line.at(400), torch.ones(6).double())
    none, explained = extrapolated(torch.zeros(3, 2), [1, 2, 3], 9)
    assert not none.any() and explained == 1


@pytest.mark.parametrize("window", [-1, 0, 1, 6])
def test_a_line_takes_two_checkpoints(window):
    with pytest.raises(ConfigError, match=rf"window={window}; a line takes 2 to 5"):
        extrapolated(torch.ones(5, 2).cumsum(0), range(5), 10, window=window)


def test_the_window_forgets_the_beginning():
    """1, 2, 3, 3, 3: all of it rises, the last three do not."""
    u = torch.tensor([1.0, 0.0])
    deltas = torch.stack([c * u for c in (1.0, 2.0, 3.0, 3.0, 3.0)])
    assert extrapolated(deltas, range(5), 10)[0][0] > 5
    assert extrapolated(deltas, range(5), 10, window=3)[0][0] == pytest.approx(3, abs=1e-5)


def test_movement_across_the_line_is_not_explained():
    deltas = torch.tensor([[1.0, 0.3], [2.0, -0.3], [3.0, 0.0]])
    assert 0.98 < extrapolated(deltas, [1, 2, 3], 4)[1] < 1


def test_one_checkpoint_is_no_line():
    with pytest.raises(ConfigError, match="expected 2 or more"):
        extrapolated(torch.ones(2, 3), [5, 5], 9)
