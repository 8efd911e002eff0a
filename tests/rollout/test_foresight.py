"""V_0: worked utilities, the budget they lead to, and an expectation that follows like questions."""

import json

import pytest

from mmrl.rollout.foresight import Foresight, expected, spend, utility
from tests.rollout.plans import rows, step


def test_worked_utilities():
    assert [utility(8, p) for p in (0.05, 0.25, 0.5, 0.9)] == pytest.approx([2.2926, 5.1991, 3.9688, 0.8], abs=1e-4)
    assert utility(1, 0.3) == 0


def test_one_at_a_time_starves_the_hard_and_looking_ahead_does_not():
    assert spend([0.05, 0.25, 0.5, 0.9], 32, 2, 32) == [2, 24, 4, 2]
    assert sum(spend([0.05, 0.25, 0.5, 0.9], 64, 2, 32, ahead=24)) == 64
    assert spend([0.05, 0.25, 0.5, 0.9], 64, 2, 32, ahead=24)[0] > 2


def test_nobody_gets_more_than_most():
    assert spend([0.5, 0.5], 100, 2, 6) == [6, 6]


def test_like_questions_decide():
    context = [("how many cubes are there", 8.0, 8), ("what color is the ball", 0.0, 8)]
    count = expected("how many balls are there", context, 4.0, 2.0)
    color = expected("what color is the cube", context, 4.0, 2.0)
    assert count > 0.5 > color
    assert expected("something else", context, 4.0, 2.0) == pytest.approx(0.5, abs=0.01)
    assert expected("how many cubes are there", context * 50, 4.0, 2.0) == 0.98


def seen(strategy: Foresight):
    now = step(1, size=4)
    now.asked = {0: "how many cubes", 1: "what color"}
    strategy.observe(rows([1, 0, 1, 0, 0, 0, 0, 0], [0] * 4 + [1] * 4), now)
    return now


def test_the_step_costs_what_it_did_and_the_promising_prompt_gets_more():
    strategy = Foresight(ahead=1)
    now = seen(strategy)
    assert [ask.count for ask in strategy.ask(step(size=4)).ask] == [2, 2]
    plan = strategy.join(rows([0, 0, 0, 0], [0, 0, 1, 1]), now)
    extra = {ask.group: ask.count for ask in plan.ask}
    assert sum(extra.values()) == 4 and extra[0] > extra.get(1, 0)
    now.round = 2
    assert strategy.join(rows([0, 0, 0, 0], [0, 0, 1, 1]), now) is None


def test_the_context_goes_on_after_a_save():
    strategy, again = Foresight(context=1), Foresight(context=1)
    seen(strategy)
    again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert again.context == strategy.context == [("what color", 0.0, 4)]
