"""Reading answers: vision.md's parse rules, one table each; a text that has no answer has None."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards import answers


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
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(c) red", "C"),
        ("C. red", "C"),
        ("D) because", "D"),
        ("The answer is (B).", "B"),
        ("First I said the answer is A, but the answer is B", "B"),
        ("The answer is A because it is red", "A"),
        ("I would choose C", "C"),
        ("Option D is correct", "D"),
        ("It must be **B**", "B"),
        ("It is red.\nSo:\nC) red", "C"),
        ("surely B", "B"),
        ("the red one", "B"),
        ("The answer is A dog and I like dogs", None),  # words, not options
        ("A or B", None),
        ("K", None),
        ("", None),
    ],
)
def test_option_letter(text, letter):
    assert answers.option_letter(text, ["the blue one", "the red one"]) == letter


@pytest.mark.parametrize(
    ("text", "letters"),
    [("A, C", "AC"), ("AC", "AC"), ("(A) and (D)", "AD"), ("none of them", ""), ("CAB", "ABC")],
)
def test_option_letters(text, letters):
    assert answers.option_letters(text) == frozenset(letters)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.", 3),
        (".5", 0.5),
        ("-2.5e3", -2500),
        ("\N{MINUS SIGN}4", -4),
        ("1,234,567.5", 1234567.5),
        ("3/4", 0.75),
        ("3 / 4", 0.75),
        ("There are 3 circles.", 3),
        ("3 circles, 3 in all", 3),
        ("5cm", 5),
        ("50%", 50),
        ("twenty-one", 21),
        ("Forty two apples", 42),
        ("zero", 0),
        ("3 or 4", None),
        ("2024-05-01", None),
        ("1,5", None),
        ("1.2.3", None),
        ("1/0", None),
        ("1e999", None),
        ("nan", None),
        ("inf", None),
        ("x3", None),
        ("", None),
    ],
)
def test_number(text, value):
    assert answers.number(text) == value


def test_a_percentage_is_divided_only_where_a_share_is_asked_for():
    assert answers.number("50%", share=True) == 0.5
    assert answers.number("50", share=True) == 50


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_every_float_python_writes_is_read_back(value):
    assert answers.number(repr(value)) == value
    assert answers.number(f"it is {value!r} in all") == value


@given(st.integers(min_value=0, max_value=10**15))
def test_thousands_separators_change_nothing(value):
    assert answers.number(f"{value:,}") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes", True),
        ("yes, it is not blue", True),
        ("It is not there", None),  # "not" holds no "no"
        ("No.", False),
        ("true", True),
        ("0", False),
        ("1", True),
        ("yes or no", None),
        ("nothing", None),
    ],
)
def test_boolean(text, value):
    assert answers.boolean(text) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here: ```json\n{"a": [1, 2]}\n``` done', {"a": [1, 2]}),
        ('first {"a": 1} then {"a": 2}', {"a": 2}),
        ("in [1, 2] or [3, 4]", [3, 4]),
        ('{"a": [1, 2]} trailing }', {"a": [1, 2]}),
        ("__import__('os')", None),
        ("{1: 2}", None),
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


READERS = [
    answers.extract,
    answers.option_letter,
    answers.option_letters,
    answers.number,
    answers.boolean,
    answers.json_value,
    answers.truth,
]


@given(st.text(alphabet="aA1.,/<>{}[]()\\\"'$%*: \n", max_size=200))
def test_no_reader_ever_raises(text):
    for read in READERS:
        read(text)


@pytest.mark.timeout(60)  # quadratic readers take minutes on these; no reader may
@pytest.mark.parametrize(
    "piece", [" ", "answer ", "]", "[", "<", "</think>", "answer is ", "\\boxed{", "1,", "1", "1/", "```", "{}", "A "]
)
def test_degenerate_outputs_are_read_quickly(piece):
    text = piece * (30_000 // len(piece))
    for read in READERS:
        read(text)
