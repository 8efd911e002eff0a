"""Turns that are attempts, each judged."""

import pytest

from mmrl.errors import ConfigError
from mmrl.record import Prompt
from mmrl.rollout.environments.attempts import Attempts
from mmrl.rollout.environments.base import Here

ASKED = Prompt("p", [{"role": "user", "content": "?"}], columns={"solution": "red", "task": "exact"})


def compiled(answer, speed=2.0):
    return (speed, "") if answer == "fast" else (0.25, f"error in {answer!r}")


def words(reply):
    return reply.messages[0]["content"][0]["text"]


def test_a_wrong_attempt_is_told_so_and_a_right_one_ends_it():
    environment = Attempts()
    state = environment.reset(ASKED)
    wrong, right = environment.step(state, "blue"), environment.step(state, "red")
    assert words(wrong) == "That is not right. Try again." and wrong.of_turn == {"action_reward": 0.0}
    assert right.of_turn == {"action_reward": 1.0} and not hasattr(right, "messages")


def test_a_judge_of_yours_says_what_is_wrong_and_how_much_is_enough():
    environment = Attempts(judge=f"{__file__}:compiled", enough=2.0)
    state = environment.reset(Prompt("p", []))
    assert words(environment.step(state, "slow")) == "error in 'slow'"
    assert environment.step(state, "fast").of_turn == {"action_reward": 2.0}
    assert Attempts(judge=f"{__file__}:compiled").reset(Prompt("p", [], columns={"speed": 1.0})) == {"speed": 1.0}


def test_a_prompt_without_what_the_judge_reads_is_lost_with_its_name():
    (lost,) = Here(Attempts()).reset([Prompt("p", [], columns={"solution": "red"})])
    assert "'task', which the prompt lacks" in lost.cause.replace('"', "")
    with pytest.raises(ConfigError, match="judge"):
        Attempts(judge="nowhere.py:judge")
    with pytest.raises(ConfigError, match="again is blank"):
        Attempts(again=" ")
