"""Unlabelled prompts first, then labelled ones."""

import pytest

from mmrl.errors import DataError
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.selection.labelled import is_labelled
from mmrl.selection.medssr import TwoStages


def prompts(*said):
    return [Prompt(f"p{i}", [], columns={"labelled": each}) for i, each in enumerate(said)]


def met(*said, **options):
    sampler = TwoStages(**options)
    sampler.meet(prompts(*said))
    return sampler


def test_the_stages_change_at_their_step_and_each_goes_through_its_own_rows():
    sampler = met(True, False, False, True, False, steps=3)
    asked = [sampler.select(2, 5, Key(0, step)) for step in range(5)]
    assert sorted(i for step in asked[:3] for i in step) == [1, 1, 2, 2, 4, 4], "two epochs of three"
    assert all(sorted(step) == [0, 3] for step in asked[3:]), "and one an epoch of two"


def test_a_run_without_a_first_stage_is_supervised_from_the_start():
    assert set(met(0, 1, 0, steps=0).select(4, 3, Key(0, 0))) == {1}


@pytest.mark.parametrize(("value", "said"), [(True, True), (0, False), ("False", False), (1.0, True), ("yes", True)])
def test_what_a_column_may_say(value, said):
    assert is_labelled(value) is said


def test_a_stage_without_rows_and_a_row_that_says_nothing_are_refused():
    with pytest.raises(DataError, match="none of the 2 rows is unlabelled by column 'labelled'"):
        met(True, True)
    with pytest.raises(DataError, match="row 1 of the data set: column 'labelled': labelled is 'maybe'"):
        met(True, "maybe")
    with pytest.raises(DataError, match="reads its column 'labelled'"):
        TwoStages().meet([Prompt("p", [], columns={"solution": "A"})])
