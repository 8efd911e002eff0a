"""SwS: which prompts are weak, how a budget is divided, and which written problems are kept."""

import pytest

from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.weakness import Weakness, acceptable, budget, weak
from tests.selection.helpers import groups, solved


@pytest.mark.parametrize(
    ("history", "is_weak"),
    [([0.1, 0.1, 0.0], True), ([0.1, 0.3, 0.6], False), ([0, 0, 0], True), ([0.9, 0.6, 0.5], False), ([0.0], False)],
)
def test_weak_is_low_and_not_rising(history, is_weak):
    assert weak(history) is is_weak


def test_the_budget_follows_failure():
    assert budget({"a": 0.2, "b": 0.6, "c": 0.2}, 100) == {"a": 20, "b": 60, "c": 20}
    assert sum(budget({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 100).values()) == 100
    assert budget({"a": 0.0, "b": 0.0}, 10) == {"a": 0, "b": 0}


def test_written_problems_need_an_agreed_answer_and_a_middling_success():
    assert acceptable(4, 0.125) and acceptable(8, 0.875)
    assert not acceptable(3, 0.5) and not acceptable(8, 0.0) and not acceptable(8, 1.0)


def test_after_the_pilot_weak_kinds_fill_their_share_of_a_batch():
    sampler = Weakness(pilot=2, column="kind", share=0.5)
    sampler.meet([Prompt(f"p{i}", [], columns={"kind": "ab"[i // 2]}) for i in range(4)])
    for step in range(2):
        assert sorted(sampler.select(4, 4, Key(0, step))) == [0, 1, 2, 3]
        sampler.observe([0, 1, 2, 3], groups(solved(1 - step), solved(6), solved(5), solved(8)))
    assert sampler.failures() == {"a": 0.5, "b": 0.0}
    assert sampler.plan(10) == {"a": 10, "b": 0}
    batch = sampler.select(4, 4, Key(0, 2))
    assert batch[:2] == [0, 0] and sampler.shuffled.taken == 10
