"""Drafts that are edited: how many, and what is refused."""

from types import SimpleNamespace

import pytest

from mmrl.errors import ConfigError
from mmrl.rollout.edits import EDIT, ask_drafts, check_edits


def step(group_size):
    return SimpleNamespace(group_size=group_size, prompts_per_step=3, draw=lambda count: list(range(count)))


def test_half_of_a_group_or_as_many_as_asked():
    assert [(ask.count, ask.index) for ask in ask_drafts("mine", None, step(9)).ask] == [(4, 0), (4, 1), (4, 2)]
    assert {ask.count for ask in ask_drafts("mine", 2, step(9)).ask} == {2}


def test_a_single_edit_is_compared_with_nothing():
    with pytest.raises(ConfigError, match=r"'mine': training.group_size=3 leaves 1 draft .* at least 4"):
        ask_drafts("mine", None, step(3))
    with pytest.raises(ConfigError, match=r"'mine': drafts=1; .* at least 2"):
        check_edits("mine", 1, EDIT)
    with pytest.raises(ConfigError, match="draft"):
        check_edits("mine", None, "no place for it")
