"""MedVLThinker's filter: which counts stay, in which order, and where they come from."""

import pytest

from mmrl.errors import ConfigError, DataError
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.pass_counts import PassCounts, kept
from tests.selection.helpers import groups, solved


def rows(*counts) -> list[Prompt]:
    return [Prompt(f"p{i}", [], columns={} if c is None else {"passes": c}) for i, c in enumerate(counts)]


def test_trivial_and_hopeless_prompts_go_and_easy_ones_come_first():
    assert kept(dict(enumerate([0, 1, 4, 7, 8])), 1, 7, seed=42) == [3, 2, 1]


def test_equal_counts_are_shuffled_by_the_seed():
    orders = {tuple(kept(dict.fromkeys(range(6), 3.0), 1, 7, seed)) for seed in range(5)}
    assert len(orders) > 1 and all(sorted(order) == list(range(6)) for order in orders)


def test_counts_of_the_data_set_need_no_pass():
    sampler = PassCounts(low=1, high=7, out_of=8, column="passes")
    sampler.meet(rows(0, 1, 4, 7, 8))
    assert sampler.select(4, 5, Key(0)) == [3, 2, 1, 3]


@pytest.mark.parametrize("bad", [9, -1, "many", True])
def test_a_count_that_is_none_is_refused_with_its_row(bad):
    with pytest.raises(DataError, match=r"row 1: column 'passes': expected right answers, 0 to 8"):
        PassCounts(low=1, high=7, out_of=8, column="passes").meet(rows(3, bad))
    with pytest.raises(DataError, match=r"row 1 of the data set: prompts 'medvlthinker' reads its column 'passes'"):
        PassCounts(low=1, high=7, out_of=8, column="passes").meet(rows(3, None))


def test_else_the_first_pass_counts_and_later_visits_do_not():
    sampler = PassCounts(low=1, high=7, out_of=8)
    first = [i for step in range(2) for i in sampler.select(2, 4, Key(0, step))]
    assert sorted(first) == [0, 1, 2, 3]
    sampler.observe([0, 1, 2, 3], groups(solved(0), solved(2), solved(6), solved(8)))
    assert sampler.select(3, 4, Key(0, 2)) == [2, 1, 2]
    sampler.observe([2], groups(solved(8)))
    assert sampler.select(2, 4, Key(0, 3)) == [1, 2]


def test_nothing_left_is_an_error():
    sampler = PassCounts()
    sampler.select(2, 2, Key(0))
    sampler.observe([0, 1], groups(solved(0), solved(8)))
    with pytest.raises(ConfigError, match="none of 2 prompts has 1 to 15 right of 16"):
        sampler.select(2, 2, Key(0, 1))


def test_a_step_that_asks_a_row_twice_and_more_waits_for_what_comes_of_it():
    sampler = PassCounts(out_of=8, high=7)
    assert sampler.select(4, 1, Key(0)) == [0] * 4
    assert sampler.coming(4, 1, Key(0, 1)) == [0] * 4
    assert sampler.select(1, 1, Key(0)) == [0], "a strategy asks for more within the step"
    sampler.observe([0] * 5, groups(*[solved(3)] * 5))
    assert sampler.select(2, 1, Key(0, 1)) == [0, 0]
