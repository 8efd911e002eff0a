"""SPO's sampler prefers prompts of intermediate success, repeats itself under a key, and survives a save."""

import pytest
import torch

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.uncertain import Uncertain


def outcomes(rewards: list[float]) -> Batch:
    rows = len(rewards)
    return Batch(
        mask=torch.ones(rows, 1, dtype=torch.bool), old_log_probs=torch.zeros(rows, 1),
        reward=torch.tensor(rewards), group=torch.arange(rows),
    )  # fmt: skip


def trained() -> Uncertain:
    """Row 0 always succeeds, row 1 every other time."""
    sampler = Uncertain()
    for visit in range(30):
        sampler.observe([0, 1], outcomes([1.0, float(visit % 2)]))
    return sampler


def test_uncertain_prompts_come_more_often():
    sampler = trained()
    first = [sampler.select(1, 2, Key(0, step))[0] for step in range(400)]
    assert 2 < first.count(1) / first.count(0) < 20


def test_draws_are_keyed_and_without_replacement():
    sampler = trained()
    assert sampler.select(5, 8, Key(1, 2)) == sampler.select(5, 8, Key(1, 2)) != sampler.select(5, 8, Key(1, 3))
    assert len(set(sampler.select(8, 8, Key(0)))) == 8
    assert len(sampler.select(5, 2, Key(0))) == 5


def test_the_first_visit_moves_an_even_prior():
    sampler = Uncertain(keep=0.9)
    sampler.observe([7], outcomes([1.0]))
    assert sampler.beta[7] == pytest.approx((1.45, 0.45))


def test_unscored_prompts_are_not_observed():
    sampler = Uncertain()
    sampler.observe([3, 4], outcomes([float("nan"), 1.0]))
    assert set(sampler.beta) == {4}


def test_it_survives_a_save():
    sampler, again = trained(), Uncertain()
    again.load_state_dict(sampler.state_dict())
    assert again.beta == sampler.beta
