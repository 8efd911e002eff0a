"""A vote where there is no truth, the truth where there is one."""

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.papers.medssr import check_labelled, majority, medssr


def said(*answers):
    return [f"<answer>{each}</answer>" for each in answers]


def test_the_majority_is_right_where_nobody_knows():
    got = medssr(said("B", "b", "A", "C"), ["p"] * 4, [False] * 4)
    assert [each["score"] for each in got] == [1, 1, 0, 0] and got[0]["success"] is None


def test_no_answer_wins_against_none_and_the_first_of_equals_wins():
    assert majority([0, 0, 0, 4]) == 4 and majority([5, 4]) == 5 and majority([0]) == 0
    assert [each["score"] for each in medssr(["", "", "..."], ["p"] * 3, [0] * 3)] == [0, 0, 0]


def test_a_truth_outvotes_everybody():
    rows = {"solution": ["A", "A", "A", None], "task": ["choice"] * 3 + [None]}
    got = medssr(said("B", "B", "A", "B"), ["p", "p", "p", "q"], ["yes", True, 1, "false"], **rows)
    assert [each["score"] for each in got] == [0, 0, 1, 1]
    assert [each.get("success") for each in got] == [0, 0, 1, None]


def test_a_row_that_does_not_say_which_it_is_is_refused():
    check_labelled({"labelled": False})
    check_labelled({"labelled": True, "solution": "A", "task": "choice"})
    with pytest.raises(RewardError, match="labelled is None; expected true or false"):
        check_labelled({"solution": "A", "task": "choice"})
    with pytest.raises(RewardError):
        check_labelled({"labelled": True, "task": "choice"})
    with pytest.raises(RewardError, match="every row then needs as a column"):
        medssr(said("A"), ["p"], [True])
