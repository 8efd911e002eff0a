"""Weight geometry: updates along the principal directions and off them."""

import math

import pytest
import torch

from mmrl.weights.geometry import geometry, principal_angle, unchanged_in_bfloat16


@pytest.fixture
def spectrum():
    """W = U S V^T of known singular vectors, s from 10 down to 1."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(12, 10, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(11, 10, dtype=torch.float64, generator=generator))
    s = torch.arange(10, 0, -1, dtype=torch.float64)
    return u @ torch.diag(s) @ v.T, u, v


def test_along_the_first_direction(spectrum):
    w, u, v = spectrum
    found = geometry(w, 0.1 * torch.outer(u[:, 0], v[:, 0]))
    assert found["principal"] == pytest.approx(1) and found["angle"] == pytest.approx(0, abs=1e-6)
    assert found["spectrum"] == pytest.approx(0.1 / math.sqrt(385)) and found["chance"] == pytest.approx(1 / 132)


def test_along_the_last_direction(spectrum):
    w, u, v = spectrum
    found = geometry(w, 0.1 * torch.outer(u[:, -1], v[:, -1]))
    assert found["principal"] == pytest.approx(0, abs=1e-20) and found["angle"] == pytest.approx(0, abs=1e-6)


def test_a_rotation_keeps_the_spectrum_and_turns_the_directions(spectrum):
    w, u, _ = spectrum
    turn = torch.eye(12, dtype=torch.float64)
    angle = 0.3
    pair = torch.stack([u[:, 0], u[:, 1]], 1)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    turn = turn + pair @ (rotation - torch.eye(2).double()) @ pair.T
    found = geometry(w, turn @ w - w)
    assert found["spectrum"] == pytest.approx(0, abs=1e-9) and found["angle"] == pytest.approx(angle, abs=1e-6)


def test_no_update(spectrum):
    found = geometry(spectrum[0], torch.zeros(12, 11))
    assert found["moved"] == found["principal"] == 0 and found["unchanged"] == 1


def test_a_small_step_above_one_is_lost_in_bfloat16():
    """Above 1 bfloat16 has steps of 7.8e-3."""
    one = torch.ones(2)
    assert unchanged_in_bfloat16(one, torch.tensor([1e-3, 1e-2])) == 0.5


def test_the_angle_of_a_plane_to_itself():
    basis, _ = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    assert principal_angle(basis, basis.flip(1)) == pytest.approx(0, abs=1e-7)
    other = torch.eye(6, dtype=torch.float64)[:, :1]
    assert principal_angle(other, torch.eye(6, dtype=torch.float64)[:, 1:2]) == pytest.approx(math.pi / 2)
