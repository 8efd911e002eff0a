"""Options in every form, their order, and whether a text shows them already."""

import pytest

from mmrl.data.options import are_shown, option_lines, read_options
from mmrl.data.sources import RowError

LEFT_RIGHT = ["A. left", "B. right"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["left", "right"], ["left", "right"]), (LEFT_RIGHT, LEFT_RIGHT), ({"A": "left", "B": "right"}, LEFT_RIGHT),
        (["B. right", "A. left"], LEFT_RIGHT), ({"B": "right", "A": "left"}, LEFT_RIGHT),
        ("A. left\nB. right", LEFT_RIGHT), ('["left", "right"]', ["left", "right"]),
        ([10, 2.5], ["10", "2.5"]), ({"A": "left", "B": None}, ["A. left"]),
        ([], None), (None, None), ("", None), (["", " "], None), ({}, None),
        ({"label": ["A", "B"], "text": ["left", "right"]}, LEFT_RIGHT),
        ({"choices": ["left", "right"]}, ["left", "right"]),
        ([{"label": "A", "text": "left"}, {"label": "B", "text": "right"}], LEFT_RIGHT),
        ([{"A": "left"}, {"B": "right"}], LEFT_RIGHT), ({"a": "left", "b": "right"}, LEFT_RIGHT),
        (["a) left", "b) right"], LEFT_RIGHT), ("a. left\nb. right", LEFT_RIGHT), ("A. left; B. right", LEFT_RIGHT),
        ("['left', 'right']", ["left", "right"]), ("1. left\n2. right", ["1. left", "2. right"]),
        (["a bee", "b sharp"], ["a bee", "b sharp"]),
    ],
)  # fmt: skip
def test_every_form(value, texts):
    assert read_options(value) == texts


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["A. left", "C. right"], "labelled A, C; expected A, B"),
        ([["left"]], "expected a list such as"),
        ({"A": ["left"], "B": ["right"]}, "expected a list such as"),
        ({"label": ["A"], "text": ["left", "right"]}, "2 texts, and labels"),
        ("left", "expected a list such as"),
        ('["left"', "expected a list such as"),
        (3, "expected a list such as"),
        ([str(i) for i in range(27)], "holds 27 options"),
    ],
)
def test_what_is_no_list_of_options(value, message):
    with pytest.raises(RowError, match=message):
        read_options(value)


def test_lines_count_by_place():
    assert option_lines(["left", "right"]) == option_lines(["(A) left", "(B) right"]) == "A. left\nB. right"
    assert option_lines(["A. M. Turing", "Ada"]) == "A. A. M. Turing\nB. Ada"
    assert len(option_lines([str(i) for i in range(12)]).splitlines()) == 12


def test_numbered_options_keep_their_numbers_which_are_what_a_truth_names():
    assert option_lines(["1. left", "2. right"]) == option_lines(["(1) left", "(2) right"]) == "1. left\n2. right"
    assert option_lines(["1.5", "2.5"]) == "A. 1.5\nB. 2.5" and option_lines(["1:2", "2:3"]) == "A. 1:2\nB. 2:3"


@pytest.mark.parametrize(
    ("text", "already"),
    [
        ("Which?\nA. left\nB. right", True), ("Which? (A) left (B)  right", True), ("A: left; B: right", True),
        ("Left or right?", False), ("A. left", False), ("A. right\nB. left", False), ("", False),
    ],
)  # fmt: skip
def test_whether_a_text_shows_them(text, already):
    assert are_shown(LEFT_RIGHT, text) is already
