"""Several tools in one environment, and what tags and beliefs of turns are worth."""

import json

import pytest
from PIL import Image

from mmrl.errors import ConfigError
from mmrl.media import Clip
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Done, Here, Observation
from mmrl.rollout.environments.believing_tools import BelievingTools, foretold, stated
from mmrl.rollout.environments.tagged_tools import TaggedTools
from mmrl.rollout.environments.toolbox import Toolbox


def call(**arguments):
    return f"<tool>{json.dumps(arguments)}</tool>"


def talk(environment, *outputs):
    """What is answered to each output of one conversation."""
    state = environment.reset(
        Prompt("p", [{"role": "user", "content": "?"}], images=[Image.new("RGB", (8, 8))], videos=[Clip("a.mp4")])
    )
    return [environment.step(state, output) for output in outputs]


SUM, SAME, OTHER, BAD = call(expression="1+2"), call(expression="1+2"), call(expression="2+2"), call(expression="x")


class TestToolbox:
    def test_the_arguments_of_a_call_name_the_tool(self):
        look, part, number = talk(Toolbox(side=16), call(box=[0, 0, 500, 500]), call(start=1, end=2), SUM)
        assert look.images[0].size == (16, 16) and part.videos == (Clip("a.mp4", 1.0, 2.0),)
        assert number.messages[0]["content"][0]["text"] == "3"
        assert [r.of_turn["choice"] for r in (look, part, number)] == [1, 2, 3]

    def test_an_answer_is_a_choice_by_what_it_says_and_what_nobody_knows_one_of_its_own(self):
        done, strange, unread = talk(Toolbox(tools=["calculator"]), "seven", call(box=[0, 0, 9, 9]), "<tool>x</tool>")
        assert isinstance(done, Done) and done.of_turn["choice"] > 2
        again, other, nothing = (talk(Toolbox(), text)[0].of_turn["choice"] for text in ("Seven", "eight", " "))
        assert again == talk(Toolbox(), "seven")[0].of_turn["choice"] != other and nothing == 0
        assert strange.bad == "no such tool" and "expression" in strange.messages[0]["content"][0]["text"]
        assert strange.of_turn == unread.of_turn == {"choice": 2.0} and unread.bad == "not JSON"

    def test_it_needs_tools_that_there_are(self):
        with pytest.raises(ConfigError, match="unknown tool 'zom'; did you mean 'zoom'"):
            Toolbox(tools=["zom"])
        with pytest.raises(ConfigError, match="tools is empty"):
            Toolbox(tools=[])

    def test_a_number_that_was_not_declared_loses_the_row(self):
        class Chatty(Toolbox):
            def of_turn(self, talk, turn, reply):
                return {"tag": 1.0}

        here = Here(Chatty())
        (lost,) = here.step(here.reset([Prompt("p", [])]), ["seven"])
        assert "'tag', which `turn_columns` does not declare" in lost.cause


class TestTags:
    def numbers(self, *outputs):
        return [(r.of_turn["tag"], r.of_turn["action_reward"]) for r in talk(TaggedTools(reflect=0.5), *outputs)]

    def test_exploring_pays_where_no_call_before_did_the_same(self):
        said = self.numbers(SUM, "<explore>" + SAME, "<explore>" + OTHER, "<explore>" + OTHER)
        assert said == [(0, 0), (2, 0), (2, 1), (2, 0)]

    def test_reflecting_pays_where_it_changes_a_call_that_failed(self):
        assert self.numbers(BAD, "<reflection>" + SUM) == [(0, 0), (3, 0.5)]
        assert self.numbers(SUM, "<reflection>" + OTHER)[1] == (3, 0), "nothing had failed"
        assert self.numbers("<reflection>" + SUM)[0] == (3, 0), "nothing came before"

    def test_a_plan_earns_nothing_yet_and_a_failed_call_has_no_tag(self):
        assert self.numbers("<planning>" + SUM, "<explore>" + BAD, "<explore> 7") == [(1, 0), (0, 0), (2, 1)]

    def test_what_failed_may_be_explored_again(self):
        assert self.numbers(BAD, "<explore>" + BAD)[1] == (0, 0), "a call that fails again earns nothing"
        assert TaggedTools.turn_columns == ("choice", "tag", "action_reward")


class TestBeliefs:
    def said(self, prediction, phase="adding"):
        return f"<belief>{json.dumps({'task': {'phase': phase, 'target': 'Sum'}, 'prediction': prediction})}</belief>"

    def test_a_belief_is_its_phase_and_target_whatever_it_predicts(self):
        first, second = stated(self.said("3")), stated(self.said("4"))
        assert first[0] == second[0] != stated(self.said("3", "done"))[0] and first[1] == "3"
        assert (
            stated("no belief") == (0, "")
            and stated("<belief>It is Red</belief>")[0] == stated("<belief>it is  red</belief>")[0]
        ), "words will do"

    def test_it_is_worth_the_share_of_what_it_predicted_that_comes(self):
        right, wrong, last = talk(
            BelievingTools(), self.said("I expect 3") + SUM, self.said("I expect 9") + OTHER, self.said("7") + "seven"
        )
        assert [r.of_turn["belief_reward"] for r in (right, wrong, last)] == [1, 0, 0], "nothing follows an answer"
        assert foretold("I expect the total 42 here", "The total is 7.") == pytest.approx(1 / 3)
        assert foretold("", "3") == foretold("I expect the", "the") == 0

    def test_a_call_that_fails_costs(self):
        good, bad = talk(BelievingTools(penalty=0.1), SUM, BAD)
        assert (good.of_turn["action_reward"], bad.of_turn["action_reward"]) == (0, -0.1)
        assert isinstance(bad, Observation)
