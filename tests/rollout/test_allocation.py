"""XRPO's allocator: who gets the rollouts that are left."""

import pytest

from mmrl.rollout.allocation import Allocator, allocate, half_width
from tests.rollout.plans import rows, step


class TestAllocator:
    def test_worked_intervals(self):
        assert half_width(0.5, 4) == pytest.approx(0.795612, abs=1e-6)
        assert half_width(0.5, 4) - half_width(0.5, 5) == pytest.approx(0.174780, abs=1e-6)
        assert half_width(0.5, 16) == pytest.approx(0.266431, abs=1e-6)
        assert half_width(0.5, 16) - half_width(0.5, 17) == pytest.approx(0.009355, abs=1e-6)

    def test_uncertain_prompts_get_more_and_all_rollouts_are_given(self):
        given = allocate([4, 4, 4], [0.5, 0.1, 0.0], 12, explore=0.05)
        assert sum(given) == 12 and given[0] > given[1] >= given[2] > 0

    def test_without_exploration_a_prompt_of_equal_rewards_gets_nothing(self):
        assert allocate([4, 4], [0.5, 0.0], 5, explore=0.0) == [5, 0]

    def test_one_at_a_time_by_hand(self):
        """Equal deviations: the smaller group is asked until both are alike."""
        assert allocate([2, 4], [0.5, 0.5], 2) == [2, 0]

    def test_it_asks_for_what_is_missing_and_then_no_more(self):
        batch = rows([1, 0, 1, 1], [7, 7, 9, 9])
        plan = Allocator(average=4).join(batch, step(1))
        counts = {ask.group: ask.count for ask in plan.ask}
        assert sum(counts.values()) == 4 and counts[7] > counts.get(9, 0)
        assert Allocator(average=2).join(batch, step(1)) is None
