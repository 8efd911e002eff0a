"""Support and query kept apart: what a skill was written from does not train, nor what is older than it."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.record import Prompt
from mmrl.rollout.metaclaw import MetaClaw
from mmrl.rollout.nesting import Nested
from tests.rollout.plans import rows, step

ASKED = Prompt("p", [{"role": "user", "content": "q"}])


def batch_of(rewards, group, generation=0.0):
    return rows(rewards, group, columns={"generation": torch.full((len(rewards),), generation)})


def test_failures_a_skill_is_written_from_are_out_and_the_others_in():
    strategy, now = MetaClaw(evolve=1), step(round=1)
    batch = batch_of([0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2])
    plan = strategy.join(batch, now)
    assert [(a.group, a.aside) for a in plan.ask] == [(0, True)], "of two failed groups one"
    assert plan.trained.tolist() == plan.counted.tolist() == [False, False, True, True, True, True]
    assert strategy.make(batch)["support"].tolist() == [1, 1, 0, 0, 0, 0]
    assert not strategy.join(batch, step(round=2)).ask, "once a step"


def test_a_new_skill_is_a_new_generation_and_what_is_older_does_not_train():
    strategy = MetaClaw(words=4)
    begun = strategy.ask(step())
    assert all(a.note is None and a.columns == {"generation": 0.0} for a in begun.ask)
    ask = strategy.join(batch_of([0.0, 0.0], [0, 0]), step(round=1)).ask[0]
    texts = strategy.usable(ask, ASKED, ["Look  twice.", "", "a rule of too many words"])
    strategy.heard(ask, texts)
    assert strategy.generation == 0, "in this step the old ones hold"
    strategy.observe(batch_of([0.0, 0.0], [0, 0]), step())
    assert (strategy.skills, strategy.generation) == (["Look twice."], 1)
    stale = strategy.join(batch_of([1.0, 0.0], [0, 0]), step(round=1))
    assert not stale.trained.any(), "asked for before, as a step that was written ahead"
    given = strategy.join(batch_of([1.0, 0.0], [0, 0], generation=-1.0), step(round=1))
    assert given.trained.all(), "rows of another strategy, such as demonstrations, saw no skills"
    strategy.observe(batch_of([1.0, 0.0], [0, 0]), step())
    assert strategy.counted() == {"skills": 1, "generation": 1, "support": 0, "stale": 2}
    fresh = strategy.join(batch_of([1.0, 0.0], [0, 0], generation=1.0), step(round=1))
    assert fresh.trained.all()
    ask = strategy.ask(step()).ask[0]
    assert ask.columns == {"generation": 1.0} and ask.trains == "shown"
    assert strategy.shown(ask, ASKED, None).messages[0]["content"].endswith("- Look twice.")


def test_known_skills_change_nothing_and_the_oldest_go():
    strategy = MetaClaw(most=2)
    for texts, skills, generation in ((["a", "b"], ["a", "b"], 1), (["b"], ["a", "b"], 1), (["c"], ["b", "c"], 2)):
        strategy.heard(None, texts)
        strategy.observe(batch_of([1.0], [0]), step())
        assert (strategy.skills, strategy.generation) == (skills, generation)
    again = MetaClaw(most=2)
    again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert again.ask(step()).digest() == strategy.ask(step()).digest()


def test_steps_may_be_written_ahead():
    assert not Nested.of(["metaclaw"]).entangled
    assert Nested.of(["igrpo"]).entangled, "that of others may not"


@pytest.mark.parametrize("wrong", [{"most": 0}, {"evolve": -1}, {"template": "x"}, {"hinter": "nobody"}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="metaclaw"):
        MetaClaw(**wrong)
