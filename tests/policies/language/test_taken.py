"""Rows are counted by the way they took, and what was slower than it might be is named."""

import pytest
import torch

from mmrl.policies.language.layout import Way
from mmrl.policies.language.taken import Taken
from mmrl.randomness import Key
from mmrl.record import Request
from tests.policies.language.scenes import image_prompt


def rollouts_of(policy, count=3):
    return policy.rollout([Request(image_prompt("p"), count, 0)], Key(1))


def test_the_rows_of_an_update_and_of_its_rollouts_are_counted_once(make_policy):
    policy = make_policy("qwen3_vl", native_steps=False)
    rollouts = rollouts_of(policy)
    policy.evaluate(rollouts)
    with torch.no_grad():  # a reference, a self-check, an evaluation
        policy.evaluate(rollouts)
        rollouts_of(policy)
    told = policy.counted()
    assert told == {"rows/scored": {"packed": 3}, "rows/written": {"lean": 3}, "rows/fell_back": {}}
    assert policy.counted() == {"rows/scored": {}, "rows/written": {}, "rows/fell_back": {}}


def test_what_was_asked_for_is_no_fall(make_policy):
    policy = make_policy("qwen3_vl", shared_prompt="off")
    policy.evaluate(rollouts_of(policy))
    told = policy.counted()
    assert told["rows/scored"] == {"plain": 3} and told["rows/fell_back"] == {}


def test_an_attention_that_packs_no_rows_is_named(make_policy):
    policy = make_policy("qwen3_vl", attention="eager")
    policy.evaluate(rollouts_of(policy))
    told = policy.counted()
    assert told["rows/scored"] == {"two_calls": 3}
    assert told["rows/fell_back"] == {"packed: attention is 'eager'": 3}
    assert policy.found["closed"] == {"packed": "attention is 'eager'"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_cache_that_checkpointing_drops_is_named(make_policy, checkpointing):
    policy = make_policy("qwen3_vl", attention="eager", gradient_checkpointing=checkpointing)
    policy.module.train()
    policy.evaluate(rollouts_of(policy))
    told = policy.counted()
    assert told["rows/scored"] == ({"plain": 3} if checkpointing else {"two_calls": 3})
    assert any("gradient checkpointing" in reason for reason in told["rows/fell_back"]) == checkpointing


def test_rows_that_are_written_out_and_rows_by_themselves_are_named():
    taken = Taken({Way.PACKED: "layers (of some type) carry state"})
    taken.score(Way.TWO_CALLS, Way.TWO_CALLS, 2, written_out=False, dropped=False, alone=True)
    taken.score(Way.TWO_CALLS, Way.TWO_CALLS, 5, written_out=True, dropped=False, alone=False)
    told = taken.told()
    assert told["rows/scored"] == {"two_calls": 2, "written out": 5}
    assert list(told["rows/fell_back"].values()) == [5, 2, 2]


def test_where_no_prompt_is_shared_rows_stay_plain(make_policy):
    """A packed row of two prompts with one answer each has as many tokens as plain rows, and more to do for each."""
    policy = make_policy("qwen3_vl")
    alone = policy.rollout([Request(image_prompt(name), 1, group) for group, name in enumerate("ab")], Key(1))
    shared = policy.rollout([Request(image_prompt("c"), 4, 0)], Key(1))
    policy.counted()
    gaps = [(policy.evaluate(rows).log_probs - rows.old_log_probs)[rows.mask] for rows in (alone, shared)]
    assert policy.counted()["rows/scored"] == {"packed": 4, "plain": 2}
    assert all(gap.abs().max() < 1e-4 for gap in gaps)
