"""Sentences, and equations that do not hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import RewardError
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.papers.equations import equations, wrong_equations
from mmrl.rewards.papers.segments import sentences
from tests.rewards.helpers import prompts


def parts(text, **options):
    return [text[a:b] for a, b, _ in sentences([text], **options)[0]["segment"]]


def test_a_sentence_ends_behind_its_mark_and_space():
    assert parts("It is 3.14 wide. Is it?  Yes it is") == ["It is 3.14 wide. ", "Is it?  ", "Yes it is"]
    assert parts("one line\nand another") == ["one line\n", "and another"]
    assert parts("first this, then that", marks=".,") == ["first this, ", "then that"]


def test_a_part_of_too_few_words_joins_the_one_before():
    assert parts("It is red. Yes. It is so.") == ["It is red. ", "Yes. It is so."]
    assert parts("It is red. Yes.") == ["It is red. Yes."] and parts("Yes.") == ["Yes."] and parts("") == []
    assert parts("It is red. Yes.", shortest=1) == ["It is red. ", "Yes."]


@given(st.text(alphabet="ab .?!\n", max_size=40))
def test_parts_cover_the_text_in_order(text):
    spans = sentences([text])[0]["segment"]
    assert "".join(text[a:b] for a, b, _ in spans) == text
    assert [number for _, _, number in spans] == list(range(len(spans)))


def test_alone_it_is_no_reward():
    spec = {"name": "sentences", "columns": ["segment"]}
    with RewardPanel([spec]) as panel, pytest.raises(RewardError, match=r"make columns alone .* name one that does"):
        panel.score(["It is. So it is."], prompts(1))
    with pytest.raises(RewardError, match="shortest=0"):
        sentences([], shortest=0)


@pytest.mark.parametrize(
    ("text", "wrong", "read"),
    [
        ("2 + 3 = 5 and 2 + 3 = 6.", ["2 + 3 = 6"], 2),
        ("so 3 \u00d7 4 = 12 = 2 * 7", ["3 \u00d7 4 = 12 = 2 * 7"], 1),
        ("1,000 / 8 = 125; 10 / 3 = 3.33", [], 2),
        ("x + 1 = 3, n = 4, 2 = 2", [], 0),
        ("2 + 2 = x", [], 0),
        ("", [], 0),
    ],
)
def test_equations_that_can_be_computed_are_checked(text, wrong, read):
    spans, seen = wrong_equations(text, 0.005)
    assert [text[a:b] for a, b in spans] == wrong and seen == read


def test_an_answer_is_worth_the_share_that_holds():
    scores = equations(["1 + 1 = 2, 2 + 2 = 5", "no sums"])
    assert [s["score"] for s in scores] == [0.5, 1.0] and scores[1]["flagged_tokens"] == []
