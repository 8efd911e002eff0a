"""Each kind of answer by its table in `cases/`: prediction and truth are read by the same parser."""

import itertools
import math
import time

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.accuracy import check_row, judge
from mmrl.rewards.booleans import boolean
from mmrl.rewards.expressions import is_costly, mathematics
from mmrl.rewards.grounding import check_boxes
from mmrl.rewards.intervals import interval
from mmrl.rewards.numbers import number
from mmrl.rewards.options import read_options, true_option
from mmrl.rewards.temporal import true_interval
from tests.rewards.helpers import cases


def tag(text: str) -> str:
    return f"<answer>{text}</answer>"


def judged(rows, task: str) -> list[str]:
    """The rows that are not worth what their table says."""
    faults = []
    for completion, solution, right, *options in rows:
        got = judge(completion, solution, task, **({"options": options[0]} if options else {}))
        if got != right:
            faults.append(f"{completion!r} for {solution!r}: {got}, should be {right}")
    return faults


@pytest.mark.parametrize(
    ("name", "task"),
    [("choice", "choice"), ("multi_choice", "multi_choice"), ("exact", "exact"), ("percent", "number")],
)
def test_judged(name, task):
    assert not judged(cases(name), task)


COLOURS = ["red", "blue", "green", "yellow"]


@pytest.mark.parametrize("form", ["{}", "<answer>{}</answer>"])
def test_chosen_is_worth_1_for_one_option_and_0_for_all_others(form):
    faults = []
    for text, label, *options in cases("chosen"):
        column = options[0] if options else COLOURS
        each = [x for x in read_options(column).labels if judge(form.format(text), x, "choice", options=column)]
        if each != ([label] if label else []):
            faults.append(f"{text!r} chooses {each}, should be {label}")
    assert not faults, "\n".join(faults)


def test_boxes():
    for completion, solution, task, right in cases("boxes"):
        assert judge(completion, solution, task) == right, (completion, solution)


def test_mixed():
    for completion, solution, task, right, *options in cases("mixed"):
        got = judge(completion, solution, task, **({"options": options[0]} if options else {}))
        assert got == pytest.approx(right), (task, completion, solution)


@pytest.mark.parametrize("form", ["{}", "<answer>{}</answer>"])
def test_what_denies_hedges_or_contradicts_itself_is_worth_nothing(form):
    """The values of these answers are right; what is said of them is not."""
    faults = []
    for text, solution, task, *options in cases("denied"):
        completion = text if "<think>" in text or "boxed" in text else form.format(text)
        if judge(completion, solution, task, **({"options": options[0]} if options else {})):
            faults.append(f"{task}: {completion!r}")
    assert not faults, "\n".join(faults)


def near(a, b) -> bool:
    return a is None and b is None if None in (a, b) else math.isclose(a, b, rel_tol=1e-9)


def test_numbers():
    for text, value in cases("numbers"):
        assert near(number(text), value), (text, number(text), value)


def test_a_number_is_right_as_a_truth_where_it_can_be_read_and_else_refused():
    for text, value in cases("numbers"):
        row = {"task": "number", "solution": text}
        if value is None:
            with pytest.raises(RewardError):
                check_row(row)
        else:
            check_row(row)
            assert judge(tag(text), text, "number") == 1, text
            assert judge(tag(repr(2 * value + 7)), text, "number") == 0, text


def test_intervals():
    for text, value in cases("intervals"):
        assert interval(text) == (value and pytest.approx(value)), text
        if value is None or value[1] <= value[0]:
            with pytest.raises(RewardError):
                true_interval(text)
        else:
            assert judge(tag(text), value, "temporal") == judge(tag(str(value)), text, "temporal") == pytest.approx(1)


def test_booleans():
    for text, value in cases("booleans"):
        assert boolean(text) is value, text


class TestMathematics:
    def test_table(self):
        faults = [row for row in cases("math") if mathematics(f"\\boxed{{{row[0]}}}", row[1]) != row[2]]
        assert not faults

    @pytest.mark.parametrize(
        "tower", ["10^{10^{10}}", "9^9^9^9", "9^{9^{9^{9}}}", "2^{100000}", "(x+1)^{5000}", "100000!", "2^(10^10)"]
    )
    def test_what_cannot_be_written_out_is_not_computed(self, tower):
        assert is_costly(tower)
        start = time.perf_counter()
        assert mathematics(f"\\boxed{{{tower}}}", "5") == 0
        assert time.perf_counter() - start < 2

    @pytest.mark.parametrize("text", ["2^{2023}", "x^{2023}", "2^{2^{3}}", "3^{3^{3}}", "10^{-6}", "5!", "e^{2x}"])
    def test_what_can_is(self, text):
        assert not is_costly(text)

    def test_a_comparison_that_takes_too_long_says_so(self, monkeypatch):
        from mmrl.rewards import expressions

        monkeypatch.setattr(expressions, "SECONDS", 0.05)
        monkeypatch.setattr(expressions, "_equal", lambda *_: all(i >= 0 for i in itertools.count()))
        with pytest.raises(TimeoutError, match=r"more than 0\.05 s"):
            mathematics("\\boxed{x+1}", "5")


PETS = ["A cat", "A dog", "A cow", "A hen"]


class TestOptions:
    @pytest.mark.parametrize(
        "column",
        [
            ["cat", "dog"], ["A. cat", "B. dog"], ["(A) cat", "(B) dog"], ["A: cat", "B: dog"], ("cat", "dog"),
            {"A": "cat", "B": "dog"}, {"a": "cat", "b": "dog", "c": None},
            {"label": ["A", "B"], "text": ["cat", "dog"]},
            [{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}], [{"A": "cat"}, {"B": "dog"}],
            "A. cat\nB. dog", "cat\ndog", "(A) cat (B) dog", "A. cat B. dog", '["cat", "dog"]', "['cat', 'dog']",
            '{"A": "cat", "B": "dog"}', "cat|dog",
        ],
    )  # fmt: skip
    def test_every_form_is_the_same_options(self, column):
        options = read_options(column)
        assert (options.labels[:2], options.texts) == (("A", "B"), ("cat", "dog"))

    @pytest.mark.parametrize(
        "column", ["cat, dog", 5, ["cat"], ["cat", ""], ["cat", None], {"A": "cat"}, [["cat"], []]]
    )
    def test_what_cannot_be_read_is_refused(self, column):
        with pytest.raises(RewardError, match="options"):
            check_row({"task": "choice", "solution": "A", "options": column})

    @pytest.mark.parametrize(
        ("solution", "options", "label"),
        [
            ("B", PETS, "B"), ("(b)", PETS, "B"), ("B. A dog", PETS, "B"), ("A dog", PETS, "B"), ("a dog.", PETS, "B"),
            (1, PETS, "B"), (1.0, PETS, "B"), (["B"], PETS, "B"), ("Vitamin C", ["Vitamin C", "Vitamin D"], "A"),
            ("2", {"1": "cat", "2": "dog"}, "2"), (2, {"1": "cat", "2": "dog"}, "2"), (5, ["4", "5", "6"], "B"),
            ("Paris", None, None), ("Vitamin A", None, None), ("I don't know", None, None), ("K", None, "K"),
        ],
    )  # fmt: skip
    def test_truths(self, solution, options, label):
        assert true_option(solution, options)[0] == label

    @pytest.mark.parametrize(
        ("solution", "options"),
        [
            ("E", PETS), ("a bird", PETS), ("A, C", PETS), ("A or B", None), ("A, C", None), (["A", "B"], PETS),
            (7, PETS), (-1, PETS), (1, None), (1, ["0", "1", "2", "1"]), (3, ["1", "2", "3", "4"]), (1.5, PETS),
            ("B. A cat", PETS), ("1", ["a cat", "a dog"]), ("dog", ["dog", "dog"]), ("B", ["B", "A"]), (True, PETS),
        ],
    )  # fmt: skip
    def test_a_truth_that_is_not_one_option_for_certain_is_refused(self, solution, options):
        with pytest.raises(RewardError, match="solution"):
            check_row({"task": "choice", "solution": solution, "options": options})


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        ({"solution": "A dog", "options": ["A cat", "A dog", "A cow"], "task": "choice"}, "B", "A"),
        ({"solution": "\N{EN DASH}5", "task": "number"}, "-5", "5"),
        ({"solution": "3 million", "task": "number"}, "3000000", "3"),
        ({"solution": {"start": "01:01", "end": "02:02"}, "task": "temporal"}, "61 to 122", "1 to 2"),
        ({"solution": ["red", "crimson"], "task": "text"}, "crimson", "['red', 'crimson']"),
        ({"solution": 1, "options": ["a cat", "a dog"], "task": "choice"}, "B", "A"),
    ],
)
def test_a_truth_that_check_takes_is_read_for_what_it_says(row, right, wrong):
    """Once taken and read as another: as the letter A, 5, 3, one second, a list's text. An index counts from 0, and a
    column that counts from 1 has a row with one index too many, which is refused."""
    check_row(row)
    judged = [judge(tag(each), **row) for each in (right, wrong)]
    assert judged == [1, 0]
    if isinstance(row["solution"], int):
        with pytest.raises(RewardError, match=r"is no index of 2 options \(from 0\)"):
            check_row({**row, "solution": 2})


REFUSED = {
    "exact": [[], ["red", ""], {"a": 1}],
    "multi_choice": ["none", "cat", "A or B?", [], ["A", "red"], "A cat and a dog"],
    "boolean": ["maybe", "yes or no", 2, [True, False], "10"],
    "number": ["red", "5 or 6", ["5", "6"], True, "2x", "1/0", "at least 5", "12:30", [], "nan", "inf", "1e400"],
    "regression": ["red", "3 to 4"],
    "math": [True, ["1", "2"], {"a": 1}],
    "temporal": ["red", "8 to 2", {"time": [3, 3]}, [float("nan"), 8], [2, float("inf")], [-1, 3], [1, 2, 3], 5,
                 [[1, 2], [3, 4]], "0:75 to 2:00", {"start": 1}, "frames 2 to 8"],
    "box": ["a cat", [1, 2, 3], [10, 10, 0, 0], [[0, 0, 1, 1], [5, 5, 5, 5]], [[0, 0, 1, 1], [1, 2]], {"label": "cat"},
            [float("nan"), 0, 1, 1], [True, 0, 1, 1], "[0, 0, 1, 1", "no idea", [[0, 0, 1, 1], "x"]],
    "boxes": [None, {}],
    "choice": [],
}  # fmt: skip
NOTHING = [None, "", "  ", float("nan"), "<think>cut", "<answer></answer>", "...", {}]


@pytest.mark.parametrize("task", REFUSED)
def test_a_truth_that_cannot_be_read_for_certain_is_refused_and_never_judged(task):
    for solution in [*NOTHING, *REFUSED[task]]:
        for judging in (lambda s: check_row({"task": task, "solution": s}), lambda s: judge(tag("A"), s, task)):
            with pytest.raises(RewardError):
                judging(solution)
                pytest.fail(f"{task}: {solution!r} is taken")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({}, {"box_format": "rel1000"}, "did you mean 'rel_1000'"),
        ({}, {"truth_format": "abs"}, "unknown truth_format"),
        ({}, {"box_format": "abs_resized", "truth_format": "abs_original", "image_size": 1}, "resized_size|image_size"),
        ({"image_size": [0, 5]}, {"box_format": "rel_1", "truth_format": "abs_original"}, "width, height"),
        ({"image_size": [5]}, {"box_format": "rel_1", "truth_format": "abs_original"}, "width, height"),
        ({}, {"truth_format": "rel_1"}, "outside the frame"),
    ],
)
def test_frames_of_boxes_are_checked(row, settings, message):
    with pytest.raises(RewardError, match=message):
        check_boxes({"solution": [10, 20, 110, 220], **row}, **settings)
