"""Reading answers: vision.md's parse rules, one table each; a text that has no answer has None."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.booleans import boolean
from mmrl.rewards.boxes import boxes, says_none
from mmrl.rewards.chosen import chosen, several
from mmrl.rewards.expressions import is_costly
from mmrl.rewards.intervals import interval
from mmrl.rewards.numbers import number
from mmrl.rewards.options import Options, read_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer>A</answer> no wait <answer>B</answer>", "B"),  # the last, not the decoy
        ("<think><answer>A</answer></think> so \\boxed{B}", "B"),  # a tag in the thought does not count
        ("<think>long thought, never closed <answer>A</answer>", ""),
        ("thought without opening </think> three", "three"),
        ("< answer > B < / answer >", "B"),
        ("<ANSWER>\n 3 \n</ANSWER>", "3"),
        ("<answer> <answer>B</answer>", "B"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{7} and \\boxed{8", "7"),  # the last one that balances
        ("<answer>\\boxed{C}</answer>", "C"),
        ("just text ", "just text"),
    ],
)
def test_extract(text, expected):
    assert answers.extract(text) == expected


def test_the_whole_text_is_no_answer_where_a_tag_is_asked_for():
    assert answers.extract("the answer is 3", whole=False) == ""
    assert answers.extract("\\boxed{3}", whole=False) == "3"


@pytest.mark.parametrize(
    ("solution", "expected"),
    [("$3$", "3"), ("$$x+1$$", "x+1"), ("<answer>B</answer>", "B"), (3, "3"), (0.5, "0.5"), ("\\boxed{4}", "4")],
)
def test_truth(solution, expected):
    assert answers.truth(solution) == expected


@pytest.mark.parametrize(
    "solution", [None, "", " ", math.nan, "<think>cut", "<answer></answer>", "...", {}, ["a", "b"], []]
)
def test_a_truth_without_an_answer_is_refused(solution):
    with pytest.raises(RewardError, match="solution"):
        answers.truth(solution)


@pytest.mark.parametrize(
    "cut", ["<answer>B", "B</answer>", "<think>B", "\\boxed{B", "<answer>\\boxed{B</answer>", "x</think><think>B"]
)
def test_a_reply_that_was_cut_has_no_answer(cut):
    assert answers.extract(cut) == ""


def test_statements_settle_on_what_is_said_last_after_a_turn():
    def settled(text):
        return answers.settled([(place, said.strip()) for place, said in answers.statements(text)], text)

    assert settled("The answer is 3.") == "3"
    assert settled("The answer is 3. Wait, the answer is 4.") == "4"
    assert settled("The answer is 3. The answer is 4.") is None, "two side by side"
    assert settled("The answer is 3, but the answer is 4, so the answer is 5") is None, "a walk"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here: ```json\n{"a": [1, 2]}\n``` done', {"a": [1, 2]}),
        ('first {"a": 1} then {"a": 2}', {"a": 2}),
        ("in [1, 2] or [3, 4]", [3, 4]),
        ('{"a": [1, 2]} trailing }', {"a": [1, 2]}),
        ("__import__('os')", None),
        ("{1: 2}", {"1": 2}),
        ("{f(1): 2}", None),
        ("7", None),
        ("", None),
    ],
)
def test_json_value(text, value):
    assert answers.json_value(text) == value


json_objects = st.dictionaries(
    st.text(max_size=5), st.lists(st.integers(), max_size=4) | st.text(max_size=5), min_size=1
)


@given(json_objects)
def test_json_is_found_in_a_sentence(value):
    assert answers.json_value(f"The result is {json.dumps(value)}") == value


PETS = read_options(["A cat", "A dog", "12", "$x^2$"])
READERS = [
    answers.extract,
    answers.json_value,
    number,
    boolean,
    interval,
    boxes,
    says_none,
    is_costly,
    lambda text: chosen(text, Options()),
    lambda text: chosen(text, PETS),
    lambda text: several(text, PETS),
]


@given(st.text(alphabet="aA1.,/<>{}[]()\\\"'$%*:-^√½ \n", max_size=200))
def test_no_reader_ever_raises(text):
    for read in READERS:
        read(text)


@pytest.mark.timeout(60)  # quadratic readers take minutes on these; no reader may
@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "answer ",
        "]",
        "[",
        "<",
        "</think>",
        "answer is ",
        "\\boxed{",
        "1,",
        "1",
        "1/",
        "```",
        "{}",
        "A ",
        "one ",
        "a dog ",
        "^",
        "(",
        "1/2 ",
        "12:",
        "0:01 to ",
        "not ",
        "½",
        "\\frac{",
        "9^",
        "million ",
    ],
)
def test_degenerate_outputs_are_read_quickly(piece):
    text = piece * (30_000 // len(piece))
    for read in READERS:
        read(text)
