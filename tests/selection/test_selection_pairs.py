"""Pairs of a hard and an easy prompt, and the advantages they lead to."""

import pytest

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.randomness import Key
from mmrl.selection.pairs import Pairs
from tests.selection.helpers import groups, solved


def test_hard_and_easy_prompts_alternate_and_the_rest_is_shuffled():
    sampler = Pairs()
    sampler.observe(list(range(6)), groups(*[solved(n) for n in (0, 1, 2, 4, 7, 8)]))
    assert sampler.kinds() == ([1, 2], [4])
    batch = sampler.select(5, 6, Key(0))
    assert batch[0] in (1, 2) and batch[1] == 4
    assert sampler.shuffled.taken == 3


def test_without_outcomes_it_is_a_shuffle():
    assert sorted(Pairs().select(6, 6, Key(0))) == list(range(6))


def test_rare_outcomes_of_a_pair_get_the_large_advantages():
    """p = 1/8 and p = 7/8: (+2.6458, -.3780) and (+.3780, -2.6458), each prompt by itself, with the population std."""
    objective = Objective.of({"advantage": {"name": "grpo", "ddof": 0, "eps": 0.0}})
    advantage = objective.prepare(groups(solved(1), solved(7)))[0].advantage[:, 0]
    assert [advantage[i].item() for i in (0, 1, 8, 15)] == pytest.approx([2.6458, -0.3780, 0.3780, -2.6458], abs=1e-4)


def test_bounds_that_leave_no_room_are_refused():
    with pytest.raises(ConfigError, match="expected 0 < low < high < 1"):
        Pairs(low=0.8, high=0.2)
