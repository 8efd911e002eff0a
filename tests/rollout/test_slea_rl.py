"""Experiences of a kind of observation: remembered from turns, told where that kind comes again."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.rollout.environments.attempts import AGAIN
from mmrl.rollout.environments.base import Here
from mmrl.rollout.environments.experienced import EXPERIENCES, Experienced, cluster_of
from mmrl.rollout.nesting import Nested
from mmrl.rollout.slea_rl import Experience, SleaRl
from tests.rollout.plans import rows, step
from tests.training.tiny import make_policy, make_prompts

ASKED = Prompt("p", [{"role": "user", "content": "q 7"}], columns={"solution": "red", "task": "exact"})
FIRST, AFTER = cluster_of("q 7"), cluster_of(AGAIN)


def two_turns(rewards):
    """One group; each row acts twice, in the prompt and in what a wrong attempt is told."""
    count = len(rewards)
    batch = rows(rewards, [0] * count)
    batch.mask = torch.ones(count, 2, dtype=torch.bool)
    batch.member = torch.arange(count)
    batch.columns = {"turn": torch.tensor([[0, 1]] * count), "cluster": torch.tensor([[FIRST, AFTER]] * count)}
    now = step()
    now.turns = {(0, m): [f"first of {m}", f"second of {m}"] for m in range(count)}
    return batch, now


def test_turns_of_rollouts_apart_from_their_group_are_remembered_by_what_they_answer():
    strategy = SleaRl(keep=2, rate=2)
    strategy.observe(*two_turns([1.0, 0.0, 0.5]))
    assert strategy.library[FIRST] == [Experience("first of 0", 0.5), Experience("first of 1", -0.5)]
    assert strategy.library[AFTER][0].text == "second of 0"
    strategy.observe(*two_turns([0.5, 0.5, 0.5]))
    assert len(strategy.library[FIRST]) == 2, "nothing apart, nothing new"
    assert len(SleaRl(rate=1).library) == 0


def test_admission_is_limited_and_a_resumed_library_asks_alike():
    strategy, again = SleaRl(rate=1, keep=2, clusters=1), SleaRl(rate=1, keep=2, clusters=1)
    strategy.observe(*two_turns([1.0, 0.0]))
    assert strategy.counted() == {"clusters": 1, "experiences": 1}
    assert list(strategy.library) == [AFTER] and len(strategy.library[AFTER]) == 1
    again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert again.library == strategy.library
    assert again.ask(step()).digest() == strategy.ask(step()).digest()


def test_the_environment_tells_what_the_prompt_brought():
    strategy = SleaRl(keep=2, rate=2)
    strategy.observe(*two_turns([1.0, 0.0]))
    ask = strategy.ask(step()).ask[0]
    shown = strategy.shown(ask, ASKED, None)
    assert "What went well in such a place:\n- first of 0" in shown.messages[0]["content"]
    assert shown.id != ASKED.id and ask.trains == "shown"
    environment = Experienced(inside="attempts")
    state = environment.reset(shown)
    reply = environment.step(state, "blue")
    texts = [part["text"] for part in reply.messages[0]["content"]]
    assert texts[0] == AGAIN and texts[1].strip().endswith("What went badly in such a place:\n- second of 1")
    assert reply.of_turn == {"action_reward": 0.0, "cluster": float(FIRST)}
    assert environment.step(state, "red").of_turn == {"action_reward": 1.0, "cluster": float(AFTER)}
    bare = Experienced(inside="attempts")
    assert len(bare.step(bare.reset(ASKED), "blue").messages[0]["content"]) == 1, "without a library it is the inner"


def test_kinds_are_words_without_their_numbers():
    assert cluster_of("Door 3 of 12") == cluster_of("door  4 of 7.5") != cluster_of("window 3 of 12")


def test_a_policy_s_turns_are_told_apart_in_words():
    policy = make_policy(max_new_tokens=8)
    prompt = make_prompts(1)[0]
    prompt.columns["task"] = "exact"
    around = Here(Experienced(inside={"name": "attempts", "max_turns": 2}))
    with torch.no_grad():
        found = policy.converse([Request(prompt, 2, group=0)], Key(0), around)
    said = policy.turn_texts(found)
    assert [texts[-1] for texts in said] == found.outputs
    assert [len(texts) for texts in said] == [int(turn.max()) + 1 for turn in found.columns["turn"]]
    assert (found.columns["cluster"][found.mask & (found.columns["turn"] == 0)] != 0).all()


def test_it_wants_an_environment_that_numbers_what_it_shows():
    assert Nested.of(["slea_rl"]).reads({}) == {"cluster": ["rollout 'slea_rl'"]}
    with pytest.raises(ConfigError, match="inside is itself"):
        Experienced(inside="slea_rl")
    with pytest.raises(ConfigError, match="an even number to keep"):
        SleaRl(keep=3)
    assert EXPERIENCES not in ASKED.columns
