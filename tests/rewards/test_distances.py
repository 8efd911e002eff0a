"""Edit distances, and what texts share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards import distances


def by_table(first, second):
    """The distance as it is defined, cell by cell."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


@given(st.text("abc", max_size=80), st.text("abc", max_size=80))
def test_the_fast_way_is_the_definition(first, second):
    assert distances.edits(first, second) == by_table(first, second) == distances.edits(second, first)


@pytest.mark.parametrize(("first", "second", "distance"), [("kitten", "sitting", 3), ("", "ab", 2), ("ab", "ab", 0)])
def test_edits(first, second, distance):
    assert distances.edits(first, second) == distance
    assert distances.edits(list(first), list(second)) == distance, "of any items, not of characters alone"


def test_similarity_is_a_share_of_the_longer():
    assert distances.similarity("ab", "abcd") == 0.5 and distances.similarity("", "") == 1


def test_words_fold_and_scripts_without_spaces_count_by_character():
    assert distances.words("Don't STOP\N{HORIZONTAL ELLIPSIS} 3.5") == ["don't", "stop", "3", "5"]
    assert distances.words("\u732b\u304c") == ["\u732b", "\u304c"]


def test_the_is_no_content():
    assert not distances.shares_content(["the", "cat"], ["the", "dog"])
    assert distances.shares_content(["the", "cat"], ["a", "cat"])
    assert distances.overlap_f1("aab", "ab") == pytest.approx(0.8) and distances.longest_common("abcd", "acbd") == 3
