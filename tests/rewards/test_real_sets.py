r"""Sets of reals read from what is written, and whether two are the same; odd texts are no sets, and are so at once."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.real_sets import FAR, Piece, read, same

BELOW_3 = (Piece(f"-{FAR}", "3"),)


@pytest.mark.parametrize(
    ("text", "pieces", "variable"),
    [
        ("x < 3", BELOW_3, "x"),
        ("3 > x", BELOW_3, "x"),
        (r"(-\infty, 3)", BELOW_3, ""),
        (r"]-\infty, 3[", BELOW_3, ""),
        (r"\{t \mid t < 3\}", BELOW_3, "t"),
        (r"x \in (-\infty, 3)", BELOW_3, ""),
        (r"2 \le x < 5", (Piece("2", "5", True, False),), "x"),
        (r"5 > x \geq 2", (Piece("2", "5", True, False),), "x"),
        (r"x \geq 2 \text{ and } x < 5", (Piece("2", "5", True, False),), "x"),
        ("x > 5 and x < 2", (), "x"),
        ("|x| > 1", (Piece(f"-{FAR}", "-1"), Piece("1", FAR)), "x"),
        (r"|x| \le 1", (Piece("-1", "1", True, True),), "x"),
        (r"x \neq 2", (Piece(f"-{FAR}", "2"), Piece("2", FAR)), "x"),
        (r"\mathbb{R} \setminus \{2\}", (Piece(f"-{FAR}", "2"), Piece("2", FAR)), ""),
        (r"(-\infty, -1) \cup [1, \infty)", (Piece(f"-{FAR}", "-1"), Piece("1", FAR, True)), ""),
        ("all real numbers", (Piece(f"-{FAR}", FAR),), ""),
        (r"[2, \infty]", (Piece("2", FAR, True),), ""),  # what is far away is never reached
    ],
)
def test_what_is_written(text, pieces, variable):
    found = read(text)
    assert found is not None
    assert (found.pieces, found.variable) == (pieces, variable)


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "3", "||x|>1|", "||x||<1", "|x|>|y|", "|x| > -1", "x<3 or y>5", "x<y<z<w", "x<", "<", "(", "(1,2,3)",
     "()", "[1,]", r"\{\}", r"\{x \mid\}", r"x \in", r"\cup", "2<x>1", "x < x + 1",
     "x<1 and y<2", "x<1 and x<2 and x<3"],
)  # fmt: skip
def test_what_is_no_set(text):
    assert read(text) is None


def test_a_point_is_not_told_as_a_set():
    assert not read("(2, 5)").told
    assert all(read(text).told for text in ("2 < x < 5", r"(2, \infty)", r"(2,5) \cup (7,8)"))


def test_the_same_whatever_the_order_and_never_by_half():
    union, other, half = (read(t) for t in (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)", "(1,2)"))
    assert same(union, other, str.__eq__)
    assert not same(union, half, str.__eq__)
    assert not same(half, union, str.__eq__)
    assert not same(read("[1,2)"), half, str.__eq__)
    asked = []
    same(read("x<3"), read("x>3"), lambda *ends: bool(asked.append(ends)))
    assert not any(FAR in end for ends in asked for end in ends)


@given(st.text("x<>|(){}[],\u222a\\ 12y-\u2264", max_size=60))
def test_no_text_raises(text):
    read(text)


def test_long_texts_are_quick():
    start = time.process_time()
    for piece in ("|", "x<", "(1,", "[", "\\{x:", " ", "1\u222a", "- ", "{", "x\u2264|"):
        read(piece * 2000)
    assert time.process_time() - start < 2
