"""HiLL's choice of a hint, SELF's curation, DRIVE's shrinking set."""

import json
import math

import pytest
import torch

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.curricula import Drive
from mmrl.stages import Bound


def rows(rewards: list[float], group: list[int], **fields) -> Batch:
    worth = torch.tensor(rewards, dtype=torch.float64)
    fields.setdefault("old_log_probs", torch.zeros(len(rewards), 1, dtype=torch.float64))
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    return Batch(mask=mask, reward=worth, success=worth, group=torch.tensor(group), **fields)


class TestHill:
    def select(self, success, hint, bare, hinted):
        groups = [n // 2 for n in range(len(success))]
        shown = torch.tensor(hinted, dtype=torch.float64)[:, None]
        columns = {"hint": torch.tensor(hint), "bare_log_probs": torch.tensor(bare, dtype=torch.float64)[:, None]}
        batch = rows(success, groups, prompt=torch.zeros(len(success)).long(), columns=columns, old_log_probs=shown)
        return Bound.of("group", "hill")(batch).trained.tolist()

    def test_the_hint_whose_answers_stay_likely_without_it(self):
        """No hint: nothing right. Hint 1: right answers lean on it. Hint 2: they do not."""
        kept = self.select([0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2], [-1, -1, -3, -1, -1, -1], [-1] * 6)
        assert kept == [False] * 4 + [True] * 2

    def test_without_a_useful_hint_the_plain_group_stays(self):
        assert self.select([1, 0, 1, 1], [0, 0, 1, 1], [-1] * 4, [-1] * 4) == [True, True, False, False]
        assert self.select([1, 0, 1, 0], [0, 0, 1, 1], [-1] * 4, [-1] * 4) == [True, True, False, False], "no better"


def test_self_drops_what_is_solved_greedily():
    greedy = torch.tensor([1.0, 1, 0, 0, 1, 1, float("nan"), 0])
    batch = rows([1, 0] * 4, [0, 0, 1, 1, 2, 2, 3, 3], columns={"greedy_success": greedy})
    assert Bound.of("group", "self")(batch).trained.tolist() == [False, False, True, True, False, False, True, True]


class TestDrive:
    def trained(self, **parameters) -> Drive:
        """Four prompts, solved always, half the time, rarely and never."""
        drive = Drive(hard_from=2, every=2, **parameters)
        for outcome in ([1.0, 1, 0, 0], [1, 0, 1, 0]):
            drive.observe([0, 1, 2, 3], rows(outcome, [0, 1, 2, 3]))
        return drive

    def test_all_prompts_first_then_the_hardest_without_solved_ones(self):
        drive = self.trained()
        assert sorted(drive.select(4, 4, Key(0, 0))) == [0, 1, 2, 3]
        assert drive.rate == pytest.approx({0: 1.0, 1: 0.9, 2: 0.1, 3: 0.0})
        assert sorted(drive.select(2, 4, Key(0, 2))) == [2, 3]
        assert set(drive.select(3, 4, Key(0, 4))) == {3}, "the set shrinks again"

    def test_what_never_succeeds_is_parked_and_solved_prompts_never_return(self):
        drive = self.trained(parked=2)
        assert sorted(drive.select(4, 4, Key(0, 2))) == [1, 1, 2, 2]
        drive.observe([1, 2], rows([1.0, 1.0], [0, 1]))
        drive.rate[0] = 0.2
        assert 0 not in drive.select(4, 4, Key(0, 4))

    def test_a_set_of_which_nothing_is_left_stays(self):
        drive = Drive(hard_from=1, every=1)
        drive.observe([0, 1], rows([1.0, 1.0], [0, 1]))
        assert sorted(drive.select(2, 2, Key(0, 1))) == [0, 1]

    def test_a_saved_sampler_goes_on_as_it_would_have(self):
        drive, again = self.trained(keep=0.75), Drive(hard_from=2, every=2, keep=0.75)
        drive.select(2, 4, Key(0, 3))
        again.load_state_dict(json.loads(json.dumps(drive.state_dict())))
        assert drive.select(5, 4, Key(0, 5)) == again.select(5, 4, Key(0, 5))
        assert math.isclose(again.rate[2], 0.1)
