"""XRPO's allocator: who gets the rollouts that are left, and what unsolved prompts are shown."""

import json

import pytest
import torch

from mmrl.record import Prompt
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

    def test_the_rest_is_given_in_rounds(self):
        batch, three = rows([1, 0, 1, 1], [7, 7, 9, 9]), Allocator(average=4, rounds=3)
        assert sum(ask.count for ask in three.join(batch, step(1)).ask) == 2
        assert sum(ask.count for ask in three.join(batch, step(2)).ask) == 2, "what was asked before counts"
        assert three.join(batch, step(3)) is None


class TestSeeding:
    def asked(self, texts: dict | None = None):
        now = step(1)
        now.asked = {0: "how many cubes", 1: "how many balls", 2: "what color"}
        now.texts = texts or {}
        return now

    def taught(self) -> Allocator:
        strategy = Allocator(average=4, seeds=2, memory=2)
        answers = {(0, 0): "I see three, so 3", (0, 1): "3", (1, 0): "2", (2, 0): "red", (2, 1): "blue"}
        strategy.observe(rows([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], member=MEMBERS), self.asked(answers))
        return strategy

    def test_right_answers_are_remembered_the_shortest_of_a_prompt(self):
        assert self.taught().examples.known == {"how many cubes": "3", "what color": "red"}

    def test_unsolved_prompts_see_the_solved_ones_most_like_them(self):
        strategy = self.taught()
        plan = strategy.join(rows([1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], member=MEMBERS), self.asked())
        assert {ask.group: (ask.note, ask.trains) for ask in plan.ask}[1] == ("examples", "shown")
        assert all(ask.note is None for ask in plan.ask if ask.group != 1)
        prompt = Prompt("p", [{"role": "user", "content": "how many balls"}])
        shown = strategy.shown(next(ask for ask in plan.ask if ask.group == 1), prompt, None)
        assert shown.text.index("how many cubes\n3") < shown.text.index("what color\nred")
        assert shown.id != prompt.id

    def test_without_an_example_of_another_question_nobody_is_seeded(self):
        strategy = Allocator(average=4, seeds=1)
        now = self.asked({(1, 0): "2"})
        strategy.observe(rows([1, 0], [1, 1], member=MEMBERS[:2]), now)
        plan = strategy.join(rows([0, 0], [1, 1], member=MEMBERS[:2]), now)
        assert [ask.note for ask in plan.ask] == [None]

    def test_examples_go_on_after_a_save_in_their_order(self):
        strategy, again = self.taught(), Allocator(average=4, seeds=2, memory=2)
        again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
        assert list(again.examples.known.items()) == list(strategy.examples.known.items())


MEMBERS = torch.tensor([0, 1] * 3)
