"""Likeness of texts: its limits, and who is nearest."""

import pytest

from mmrl.selection.likeness import features, likeness, nearest


def test_limits():
    assert likeness("How many cubes?", "how many CUBES") == pytest.approx(1)
    assert likeness("a b", "c d") == 0
    assert likeness("", "") == 1 and likeness("", "a") == 0
    assert sum(v * v for v in features("one two three").values()) == pytest.approx(1)


def test_order_of_words_counts_and_is_symmetric():
    assert 0.5 < likeness("dog bites man", "man bites dog") < 1
    assert likeness("a b c", "a b") == pytest.approx(likeness("a b", "a b c"))


def test_the_nearest_come_first():
    others = ["What color is the cube?", "How many cubes are there?", "How many balls are there?"]
    assert nearest("How many cubes are there in all?", others, 2) == [1, 2]
