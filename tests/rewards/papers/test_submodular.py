"""Marginal gains inside a group: worked sets, duplicates, and the properties that make F submodular."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import RewardError
from mmrl.rewards.papers.submodular import coverage_gains, facility_gains, submodular_rl


def test_the_largest_set_is_taken_first_and_what_it_holds_is_worth_nothing_afterwards():
    assert coverage_gains([{1, 2}, {1, 2, 3}, {4}, {4}]) == [0, 0.75, 0.25, 0]


def test_facility_location_by_hand():
    """Member 1 is near both others: F({1}) = .8 + 1 + .6 = 2.4, then 2 adds .4 and 0 adds .2, of 3 in all."""
    likeness = [[1, 0.8, 0], [0.8, 1, 0.6], [0, 0.6, 1]]
    assert facility_gains(likeness) == pytest.approx([0.2 / 3, 2.4 / 3, 0.4 / 3])


@given(
    st.lists(st.text("abc ", min_size=1, max_size=12), min_size=1, max_size=6),
    st.sampled_from(["coverage", "facility"]),
)
def test_the_second_of_two_alike_adds_nothing_and_gains_add_up_to_one(texts, kind):
    gains = submodular_rl([*texts, *texts], ["p"] * 2 * len(texts), kind=kind)
    said = any(text.strip() for text in texts)
    assert all(gain >= 0 for gain in gains) and sum(gains) == pytest.approx(float(said))
    assert gains[len(texts) :] == pytest.approx([0] * len(texts), abs=1e-9)
    assert gains == pytest.approx([*submodular_rl(texts, ["p"] * len(texts), kind=kind), *gains[len(texts) :]])


def test_groups_do_not_see_each_other():
    said = ["a red circle", "a blue square", "a red circle", "a red circle"]
    apart = submodular_rl(said, ["p", "p", "q", "q"])
    assert apart == [0.5, 0.5, 1, 0]


def test_vectors_of_yours_say_how_alike_pictures_are(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def vectors(outputs):\n    return [[1.0, 0.0] if each < 2 else [0.0, 2.0] for each in outputs]\n")
    gains = submodular_rl([0, 1, 2], ["p"] * 3, kind="facility", embed=f"{file}:vectors")
    assert gains == pytest.approx([2 / 3, 0, 1 / 3])
    with pytest.raises(RewardError, match="without `embed` it reads texts, got int"):
        submodular_rl([0], ["p"])
    with pytest.raises(RewardError, match="unknown kind 'faculty'"):
        submodular_rl(["a"], ["p"], kind="faculty")
