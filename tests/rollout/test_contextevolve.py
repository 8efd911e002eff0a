"""Past answers as examples: which are shown, what they gained, and that a resumed memory draws the same ones."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.rollout.contextevolve import ContextEvolve, Exemplar, prioritised
from tests.rollout.plans import rows, step

PROMPTS = [Prompt(f"p{i}", [{"role": "user", "content": f"question {i}"}]) for i in range(4)]


def made(**options):
    strategy = ContextEvolve(**options)
    strategy.meet(PROMPTS)
    return strategy


def answered(strategy, rewards, number=0):
    """A step of two prompts with two answers each, of these rewards."""
    now = replace(step(), number=number, key=Key(0, number))
    plan = strategy.ask(now)
    now.texts = {(g, m): f"answer {number}{g}{m}" for g in (0, 1) for m in (0, 1)}
    now.asked, now.groups = {0: "question 0", 1: "question 1"}, [0, 1]
    batch = rows(rewards, [0, 0, 1, 1])
    batch.member = batch.group.new_tensor([0, 1, 0, 1])
    strategy.observe(batch, now)
    return plan


def test_the_best_answer_and_then_the_largest_gains():
    """Gains 3, 2, 1 behind the best: at power 1 they are drawn as 1 : 1/2 : 1/3."""
    known = [Exemplar("a", 0.1, 3.0), Exemplar("best", 9.0, 0.0), Exemplar("b", 0.2, 2.0), Exemplar("c", 0.3, 1.0)]
    drawn = Counter(prioritised(known, 2, 1.0, Key(0, i))[1] for i in range(4000))
    assert all(prioritised(known, 2, 1.0, Key(0, i))[0] == 1 for i in range(20))
    shares = [drawn[i] / 4000 for i in (0, 2, 3)]
    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.03)
    assert sorted(prioritised(known, 9, 1.0, Key(0))) == [0, 1, 2, 3], "no answer twice"


def test_a_first_visit_is_plain_and_a_second_shows_what_was_best():
    strategy = made(count=2)
    first = answered(strategy, [0.25, 0.75, 1.0, 0.0])
    assert all(ask.note is None for ask in first.ask)
    assert strategy.known[0] == [Exemplar("answer 001", 0.75, 0.25)], "above the group's mean, .5"
    second = answered(strategy, [0.9, 0.1, 0.0, 0.0], number=1)
    ask = second.ask[0]
    assert ask.trains == "shown" and ask.columns == {"examples": 1.0}
    shown = strategy.shown(ask, PROMPTS[0], None)
    assert "[0.75]\nanswer 001" in shown.messages[0]["content"] and shown.beside["bare"] is PROMPTS[0]
    assert strategy.known[0][0] == Exemplar("answer 100", 0.9, pytest.approx(0.15)), "above what it saw"
    assert len(answered(strategy, [0.0] * 4, number=2).ask[0].note) == 2
    assert strategy.counted() == {"prompts": 2, "answers": 6}


def test_other_prompts_lend_theirs_only_where_asked_to():
    for across, found in ((0, 0), (1, 1)):
        strategy = made(across=across)
        answered(strategy, [1.0, 0.0, 0.5, 0.0])
        assert len(strategy.examples(2, Key(0))) == found


def test_a_resumed_memory_is_the_same():
    strategy, again = made(count=2, size=3, memory=2), made(count=2, size=3, memory=2)
    for number in range(5):
        answered(strategy, [0.1 * number, 0.2, 0.3, 0.05 * number], number)
    again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert again.known == strategy.known and all(len(known) <= 3 for known in again.known.values())
    now = replace(step(), number=7, key=Key(0, 7)), replace(step(), number=7, key=Key(0, 7))
    assert strategy.ask(now[0]).digest() == again.ask(now[1]).digest()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"power": -1.0}, {"template": "no field"}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="contextevolve"):
        ContextEvolve(**wrong)
