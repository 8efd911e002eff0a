"""VADE: worked numbers of the belief, and a draw that finds the prompts in between."""

import json

import numpy as np
import pytest

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.vade import Vade, expected_gain, faded, gain
from tests.selection.helpers import groups, solved

PROMPTS = [Prompt(f"p{i}", [], columns={"level": "fair" if i < 3 else "hard"}) for i in range(4)]


def test_the_hard_gain_is_largest_at_a_third_and_the_even_one_at_a_half():
    rates = np.array([0.25, 1 / 3, 0.5, 0.75, 0.0, 1.0])
    assert gain(rates) == pytest.approx([0.140625, 4 / 27, 0.125, 0.046875, 0, 0])
    assert gain(rates, "even") == pytest.approx([0.1875, 2 / 9, 0.25, 0.1875, 0, 0])


def test_the_belief_after_a_visit():
    sampler = Vade(short=0.9, long=1.0)
    sampler.belief[5] = (7.0, 3.0, 0)
    sampler.observe([5], groups(solved(3), step=1))
    assert sampler.belief[5] == pytest.approx((9.4, 7.8, 1))


def test_what_is_not_visited_fades_to_even():
    assert faded((21.0, 1.0, 0), 10, 0.9) == pytest.approx((1 + 20 * 0.9**10, 1.0))
    assert faded((21.0, 3.0, 4), 4, 0.9) == (21.0, 3.0)


def test_prompts_in_between_are_asked_and_the_others_are_not_forgotten():
    """Of ten hopeless, ten solved and ten prompts in between, the last come most; no row is never asked."""
    sampler, asked = Vade(), []
    for step in range(60):
        rows = sampler.select(6, 30, Key(0, step))
        sampler.observe(rows, groups(*[solved([0, 8, 3][row // 10]) for row in rows], step=step))
        asked += rows
    between = sum(row >= 20 for row in asked[120:]) / len(asked[120:])
    assert between > 0.8
    assert set(asked) == set(range(30))


def test_without_outcomes_the_draw_is_uniform():
    counts = np.bincount([i for s in range(500) for i in Vade().select(2, 10, Key(1, s))], minlength=10)
    assert abs(counts - 100).max() < 45


def test_prompts_of_a_kind_that_fails_are_not_all_asked_first():
    """Eighty rows of a hopeless kind and twenty of one that is solved half the time: three steps tell them apart."""
    prompts = [Prompt(f"p{i}", [], columns={"level": "hard" if i < 80 else "fair"}) for i in range(100)]
    shares = {}
    for kinds in (None, ["level"]):
        sampler, asked = Vade(utility="even", kinds=kinds), []
        sampler.meet(prompts)
        for step in range(10):
            rows = sampler.select(8, 100, Key(0, step))
            sampler.observe(rows, groups(*[solved(0 if row < 80 else 4) for row in rows], step=step))
            asked += rows if step >= 3 else []
        shares[bool(kinds)] = sum(row >= 80 for row in asked) / len(asked)
    assert shares[True] > 0.6 > shares[False]


def test_a_prompt_begins_with_what_its_kind_came_to_and_keeps_its_own_answers():
    sampler = Vade(kinds=["level"], long=1.0)
    sampler.meet(PROMPTS)
    even = sampler.expected(4, 0)
    assert even == pytest.approx(np.ones((2, 4)))
    sampler.observe([0, 1], groups(solved(6), solved(2)))
    begun = np.array(sampler.kinds.beliefs(0)["fair"])
    beliefs = sampler.expected(4, 0)
    assert beliefs[:, 2] == pytest.approx(begun)
    assert beliefs[:, 0] == pytest.approx(begun + np.array([6, 2]))
    with pytest.raises(ConfigError, match="prompts 'vade' has not met the data set"):
        Vade(kinds=["level"]).select(1, 4, Key(0))


def test_shares_are_in_proportion_to_what_is_gained_in_expectation():
    assert expected_gain(np.array(3.0), np.array(7.0), "even") == pytest.approx(21 / 110)
    assert expected_gain(np.array(3.0), np.array(7.0)) == pytest.approx(21 * 8 / (110 * 12))
    sampler = Vade(utility="even", draw="share")
    sampler.belief = {0: (3.0, 7.0, 0), 1: (1.0, 20.0, 0)}
    first = [sampler.select(1, 2, Key(seed))[0] for seed in range(600)]
    wanted = (21 / 110) / (21 / 110 + 20 / (21 * 22))
    assert np.mean([row == 0 for row in first]) == pytest.approx(wanted, abs=0.04)


@pytest.mark.parametrize("draw", ["best", "share"])
def test_a_prompt_rests_while_there_are_others(draw):
    sampler, last = Vade(draw=draw, rest=2), {}
    for step in range(12):
        rows = sampler.select(2, 7, Key(0, step))
        assert all(step - last.get(row, -9) > 2 for row in rows), "three steps of two rows leave one of seven"
        sampler.observe(rows, groups(*[solved(4)] * 2, step=step))
        last |= dict.fromkeys(rows, step)
    assert sorted(sampler.select(7, 7, Key(0, 12))) == list(range(7)), "all are asked where there are no others"


def test_kinds_and_rests_go_on_as_if_never_stopped():
    def steps(sampler, first, last):
        asked = []
        for step in range(first, last):
            rows = sampler.select(2, 4, Key(0, step))
            sampler.observe(rows, groups(*[solved(2 * row) for row in rows], step=step))
            asked.append(rows)
        return asked

    def opened():
        sampler = Vade(kinds=["level"], draw="share", rest=1)
        sampler.meet(PROMPTS)
        return sampler

    whole, again = opened(), opened()
    steps(whole, 0, 5)
    again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert again.kinds.met.keys() == {"fair", "hard"}
    assert steps(again, 5, 15) == steps(whole, 5, 15)
