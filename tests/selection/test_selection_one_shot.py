"""1-shot RLVR: which prompt moved most, and that it fills the batch."""

import pytest

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.selection.one_shot import OneShot, movement
from tests.selection.helpers import groups, solved


def test_movement():
    assert movement([0, 0.5, 1]) == pytest.approx(0.408248, abs=1e-6)
    assert movement([0.5] * 3) == movement([0.7]) == movement([]) == 0


def test_the_prompt_that_moved_most_fills_the_batch():
    sampler = OneShot(keep=1, pilot=3)
    for step in range(3):
        sampler.select(2, 3, Key(0, step))
        sampler.observe([0, 1, 2], groups(solved(4), solved(4 * step), solved(step)))
    assert sampler.select(128, 3, Key(0, 3)) == [1] * 128
    sampler.observe([0], groups(solved(0)))
    assert len(sampler.history[0]) == 3, "the choice has fallen"


def test_several_take_turns_and_rows_need_no_pilot():
    assert OneShot(rows=[4, 2]).select(5, 6, Key(0)) == [4, 2, 4, 2, 4]
    with pytest.raises(ConfigError, match="row 9 of a data set of 6"):
        OneShot(rows=[9]).select(2, 6, Key(0))


def test_a_pilot_that_sees_no_prompt_twice_is_refused():
    with pytest.raises(ConfigError, match="choose pilot=50"):
        OneShot(pilot=10).select(4, 100, Key(0))
