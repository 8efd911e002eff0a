"""VADE: worked numbers of the belief, and a draw that finds the prompts in between."""

import numpy as np
import pytest

from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.vade import Vade, faded, gain
from tests.selection.helpers import groups, solved


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


def test_a_kind_counts_as_few_answers():
    sampler = Vade(kinds=["level"], trust=4)
    sampler.meet([Prompt(f"p{i}", [], columns={"level": "fair"}) for i in range(3)])
    sampler.observe([0, 1], groups(solved(6), solved(2)))
    assert sampler.expected(2, 0) == pytest.approx((3, 3))
    assert sampler.expected(0, 0) == pytest.approx((1 + 6 + 2, 1 + 2 + 2))
