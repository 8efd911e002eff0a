"""Samplers: SPO's prefers prompts of intermediate success; both repeat themselves under a key and survive a save."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.prompts import Shuffled
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


def test_rewards_that_are_no_success_rate_are_refused():
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\], got \[-1, 1\]"):
        Uncertain().observe([0, 1], outcomes([-1.0, 1.0]))


@pytest.mark.parametrize("sampler", [trained(), Shuffled()], ids=["uncertain", "shuffled"])
def test_what_comes_is_what_is_selected(sampler):
    for step in range(5):
        key = Key(3, step)
        coming = sampler.coming(5, 8, key)
        assert coming == sampler.coming(5, 8, key), "looking takes nothing"
        assert sampler.select(5, 8, key) == coming


def test_a_shuffle_takes_every_prompt_once_an_epoch():
    sampler, taken = Shuffled(), []
    for step in range(8):
        taken += sampler.select(3, 8, Key(0, step))
    assert all(sorted(taken[i : i + 8]) == list(range(8)) for i in (0, 8, 16))
    assert taken[:8] != taken[8:16]
