"""DRIVE's budget: more answers in the hard stage, of as many prompts or at the same cost."""

import pytest

from mmrl.errors import ConfigError
from mmrl.rollout.budget import DriveBudget
from tests.rollout.plans import step


@pytest.mark.parametrize(("same_cost", "asked"), [(False, [8, 8]), (True, [8])])
def test_the_hard_stage_asks_more_of_each(same_cost, asked):
    now = step(size=4, prompts=2)
    assert DriveBudget(hard_from=1, members=8).ask(now) is None
    assert [ask.count for ask in DriveBudget(hard_from=0, members=8, same_cost=same_cost).ask(now).ask] == asked


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match="members=1"):
        DriveBudget(members=1)
