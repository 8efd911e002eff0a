"""Scorers of language answers: the worked numbers of the specification, limits, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import RewardError
from mmrl.rewards import choice, expressions, format, grounding, numeric, temporal, text
from mmrl.rewards.accuracy import TASKS, accuracy, check_row, find_task, judge


class TestText:
    @pytest.mark.parametrize(
        ("completion", "solution", "score"),
        [
            ("<answer>3 yellow</answer>", "3 yellow", 1),
            ("3  Yellow.", "3 yellow", 1),
            ("3 yellow circles", "3 yellow", 0),
            ("", "3 yellow", 0),
        ],
    )
    def test_exact(self, completion, solution, score):
        assert text.exact(completion, solution) == score


class TestChoice:
    @pytest.mark.parametrize(
        ("completion", "solution", "score"),
        [
            ("<answer>B</answer>", "B", 1),
            ("<answer>B. the red one</answer>", "(B)", 1),
            ("<answer>the red one</answer>", "B", 1),
            ("<answer>A</answer>", "B", 0),
            ("A or B", "B", 0),
            ("<think>B</think> A", "B", 0),
        ],
    )
    def test_single(self, completion, solution, score):
        assert choice.single(completion, solution, ["the blue one", "the red one"]) == score

    @pytest.mark.parametrize(
        ("completion", "share", "strict"),
        [("A, C", 1, 1), ("A", 0.5, 0), ("A, B", 0, 0), ("A, B, C", 0, 0), ("nothing", 0, 0)],
    )
    def test_several(self, completion, share, strict):
        assert choice.several(completion, "A,C") == share
        assert choice.several(completion, "A,C", strict=True) == strict

    def test_yes_no(self):
        assert choice.yes_no("<answer>Yes</answer>", "true") == 1
        assert choice.yes_no("It is not there", "no") == 0
        with pytest.raises(RewardError, match="neither yes nor no"):
            choice.yes_no("yes", "perhaps")


class TestNumeric:
    @pytest.mark.parametrize(
        ("completion", "solution", "score"),
        [
            ("3.001", "3", 1),
            ("3.01", "3", 0),
            ("1,234", 1234, 1),
            ("50%", "0.5", 1),  # a share
            ("50%", "50", 1),
            ("50%", "50%", 1),
            ("0.5", "50%", 1),  # what is asked for may be the share or the percentage
            ("three", "3", 1),
            ("3 or 4", "3", 0),
        ],
    )
    def test_equal(self, completion, solution, score):
        assert numeric.equal(completion, solution) == score

    def test_decimals(self):
        assert numeric.equal("0.001", "0.003") == 1  # both round to 0.00: stated in the documentation
        assert numeric.equal("0.001", "0.003", decimals=3) == 0

    @pytest.mark.parametrize(("predicted", "score"), [(10, 1), (12, 0.6), (9.2, 0.9), (7.5, 0.5), (20, 0)])
    def test_mean_relative_accuracy(self, predicted, score):
        assert numeric.mean_relative_accuracy(f"<answer>{predicted}</answer>", "10") == score

    def test_mean_relative_accuracy_of_zero(self):
        assert numeric.mean_relative_accuracy("0", "0") == 1
        assert numeric.mean_relative_accuracy("0.1", "0") == 0

    @given(st.floats(0.01, 1e6), st.floats(0.01, 1e6), st.floats(0.01, 1e3))
    def test_mean_relative_accuracy_knows_no_unit(self, truth, predicted, scale):
        thresholds = [1 - k / 20 for k in range(10, 20)]
        error = abs(predicted - truth) / truth
        if min(abs(error - threshold) for threshold in thresholds) > 1e-6:
            first = numeric.mean_relative_accuracy(repr(predicted), repr(truth))
            assert numeric.mean_relative_accuracy(repr(predicted * scale), repr(truth * scale)) == first

    @pytest.mark.parametrize(
        ("completion", "solution", "score"),
        [
            ("\\boxed{\\frac{2}{4}}", "1/2", 1),
            ("\\boxed{0.5}", "$\\frac{1}{2}$", 1),
            ("\\boxed{(x-1)(x+1)}", "x^2-1", 1),
            ("<answer>{2, 1}</answer>", "{1, 2}", 1),
            ("\\boxed{3}", "4", 0),
            ("3", "3", 0),  # neither tagged nor boxed
            ("\\boxed{}", "3", 0),
            ("\\boxed{\\frac{1}{}", "3", 0),
        ],
    )
    def test_mathematics(self, completion, solution, score):
        assert expressions.mathematics(completion, solution) == score


class TestTemporal:
    @pytest.mark.parametrize(
        "answer",
        [
            '{"time": [2, 8]}',
            '{"start_time": "2.0", "end_time": "8"}',
            "[2, 8]",
            "from 2 to 8 seconds",
            "2.0s - 8.0s",
            "0:02 to 0:08",
            "It happens between 2 and 8 s.",
        ],
    )
    def test_interval(self, answer):
        assert temporal.interval(answer) == (2, 8)

    @pytest.mark.parametrize(
        "answer", ["", "at 3 seconds", "1 to 2 or 3 to 4", '{"time": [1, 2, 3]}', '{"time": null}']
    )
    def test_no_single_interval(self, answer):
        assert temporal.interval(answer) is None

    def test_overlap(self):
        assert temporal.overlap((2, 8), (4, 10)) == 0.5
        assert temporal.overlap((8, 2), (2, 8)) == 0
        assert temporal.overlap((1, 1), (1, 1)) == 0
        assert temporal.overlap((0, 1), (1, 2)) == 0

    @given(*[st.floats(0, 100)] * 4)
    def test_overlap_is_a_similarity(self, a, b, c, d):
        first, second = tuple(sorted((a, b))), tuple(sorted((c, d)))
        value = temporal.overlap(first, second)
        assert 0 <= value <= 1
        assert value == temporal.overlap(second, first)
        if first[1] > first[0]:
            assert temporal.overlap(first, first) == 1

    def test_truth_must_be_an_interval(self):
        assert temporal.when("0.5 to 1.5", {"time": [0.5, 1.5]}) == 1
        for bad in ("red", "8 to 2", {"time": [3, 3]}):
            with pytest.raises(RewardError, match="no time interval"):
                temporal.when("2 to 8", bad)


class TestGrounding:
    def test_iou(self):
        assert grounding.iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(0.142857, abs=1e-6)
        assert grounding.iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
        assert grounding.iou((10, 10, 0, 0), (0, 0, 10, 10)) == 0  # corners swapped
        assert grounding.iou((3, 3, 3, 9), (3, 3, 3, 9)) == 0  # no area, no division by zero

    @given(st.tuples(*[st.floats(-50, 50)] * 4), st.tuples(*[st.floats(-50, 50)] * 4), st.floats(0.1, 10))
    def test_iou_does_not_change_when_an_axis_is_scaled(self, a, b, scale):
        def wide(box):
            return box[0] * scale, box[1], box[2] * scale, box[3]

        assert grounding.iou(a, b) == pytest.approx(grounding.iou(wide(a), wide(b)), abs=1e-6)
        assert grounding.iou(a, b) == grounding.iou(b, a)

    @pytest.mark.parametrize(
        "answer",
        [
            "[1, 2, 3.5, -4]",
            '{"boxes": [1, 2, 3.5, -4]}',
            '[{"bbox_2d": [1, 2, 3.5, -4], "label": "cat"}]',
            '```json\n{"boxes": [[1, 2, 3.5, -4]]}\n```',
            "The cat is at (1, 2, 3.5, -4), I think",
        ],
    )
    def test_boxes_are_read(self, answer):
        assert grounding.boxes(answer) == [(1, 2, 3.5, -4)]

    def test_hungarian_mean_iou(self):
        right = [(0, 0, 10, 10), (20, 20, 30, 30)]
        assert grounding.matched_iou(right[::-1], right) == 1
        assert grounding.matched_iou(right[:1], right) == 0.5  # a missing box
        assert grounding.matched_iou([*right, (50, 50, 60, 60)], right) == pytest.approx(2 / 3)  # an extra box
        assert grounding.matched_iou([], []) == 1
        assert grounding.matched_iou([], right) == 0

    def test_matching_is_the_best_not_the_first(self):
        """Greedy in order would give the first prediction the second truth's only match."""
        predicted = [(0, 0, 10, 10), (0, 0, 10, 4)]
        right = [(0, 0, 10, 5), (0, 0, 10, 10)]
        assert grounding.matched_iou(predicted, right) == pytest.approx((1 + 0.8) / 2)

    @pytest.mark.parametrize(
        ("frame", "box"),
        [
            ("abs_original", [64, 48, 320, 240]),
            ("abs_resized", [28, 28, 140, 140]),
            ("rel_1000", [100, 100, 500, 500]),
            ("rel_1", [0.1, 0.1, 0.5, 0.5]),
        ],
    )
    def test_frames_are_converted(self, frame, box):
        sizes = {"image_size": (640, 480), "resized_size": (280, 280)}
        score = grounding.where(str(box), [64, 48, 320, 240], box_format=frame, truth_format="abs_original", **sizes)
        assert score == pytest.approx(1)

    def test_a_frame_is_never_guessed(self):
        """Thousandths read as pixels score what they score; the size a frame needs must be there."""
        assert grounding.where("[100, 100, 500, 500]", [64, 48, 320, 240]) < 0.6
        with pytest.raises(RewardError, match="column 'resized_size'"):
            grounding.where("[1, 1, 2, 2]", [1, 1, 2, 2], box_format="abs_resized", truth_format="rel_1")
        with pytest.raises(RewardError, match="did you mean 'rel_1000'"):
            grounding.where("[1, 1, 2, 2]", [1, 1, 2, 2], box_format="rel_100", truth_format="rel_1")

    def test_threshold(self):
        assert grounding.where("[0, 0, 10, 5]", "[0, 0, 10, 10]", threshold=0.5) == 1
        assert grounding.where("[0, 0, 10, 4]", "[0, 0, 10, 10]", threshold=0.5) == 0

    def test_only_the_first_guess_counts_for_a_single_box(self):
        assert grounding.where("[50, 50, 60, 60] or [0, 0, 10, 10]", "[0, 0, 10, 10]") == 0

    def test_a_truth_without_area_is_refused(self):
        for bad in ("[10, 10, 0, 0]", "a cat", None):
            with pytest.raises(RewardError, match="no box"):
                grounding.where("[0, 0, 1, 1]", bad)


class TestAccuracy:
    @pytest.mark.parametrize(
        ("task", "completion", "solution", "score"),
        [
            ("exact", "3 yellow", "3 yellow", 1),
            ("multiple choice", "<answer>B</answer>", "B", 1),
            ("Multi-Choice", "A", "A,B", 0.5),
            ("yes_no", "no", "false", 1),
            ("numerical", "<answer>3</answer>", "3.0", 1),
            ("regression", "12", "10", 0.6),
            ("math", "\\boxed{1/2}", "0.5", 1),
            ("temporal grounding", "2 to 8", "4 to 10", 0.5),
            ("box", "[0, 0, 10, 10]", "[5, 5, 15, 15]", 1 / 7),
            ("detection", "[[0, 0, 10, 10]]", "[[0, 0, 10, 10], [20, 20, 30, 30]]", 0.5),
        ],
    )
    def test_each_task_has_its_rule(self, task, completion, solution, score):
        assert judge(completion, solution, task) == pytest.approx(score)

    def test_rows_of_different_tasks_share_a_batch(self):
        rows = accuracy(["B", "12", "[0, 0, 4, 4]"], ["B", "10", "[0, 0, 4, 8]"], ["choice", "regression", "box"])
        scores = [row["score"] for row in rows]
        assert scores == [1, 0.6, 0.5]

    def test_settings_reach_only_the_tasks_that_read_them(self):
        rows = (["A", "0.001", "[0, 0, 4, 4]"], ["A,B", "0.003", "[0, 0, 4, 8]"], ["multi_choice", "numeric", "box"])
        found = accuracy(*rows, strict=True, decimals=3, threshold=0.5)
        assert [row["score"] for row in found] == [0, 0, 1]

    def test_an_unknown_task_is_an_error_not_a_fallback(self):
        with pytest.raises(RewardError, match="unknown task 'numerc'; did you mean 'numeric'"):
            accuracy(["3"], ["3"], ["numerc"])

    @pytest.mark.parametrize(
        "row",
        [
            {"task": "numeric", "solution": "red"},
            {"task": "temporal", "solution": "red"},
            {"task": "box", "solution": "[1, 2]"},
            {"task": "boolean", "solution": "maybe"},
            {"task": "multi_choice", "solution": "none"},
            {"task": None, "solution": "3"},
            {"solution": "3"},
        ],
    )
    def test_a_row_that_no_answer_could_satisfy_is_refused(self, row):
        with pytest.raises(RewardError):
            check_row(row)

    def test_sizes_are_asked_for_before_training(self):
        row = {"task": "box", "solution": [1, 2, 3, 4], "image_size": [10, 10]}
        check_row(row, box_format="rel_1000", truth_format="abs_original")
        with pytest.raises(RewardError, match="resized_size"):
            check_row(row, box_format="abs_resized", truth_format="abs_original")

    def test_aliases_do_not_collide(self):
        names = [name for task, entry in TASKS.items() for name in (task, *entry.aliases)]
        assert len(names) == len(set(names))
        assert all(find_task(name) for name in names)


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "right"),
        [
            ("<think>a</think> <answer>b</answer>", True),
            ("<think></think>\n<answer></answer>", True),
            ("  <think>a</think><answer>b</answer>\n", True),
            ("x <think>a</think><answer>b</answer>", False),
            ("<think>a</think><answer>b</answer> x", False),
            ("<think>a</think> so <answer>b</answer>", False),
            ("<answer>b</answer>", False),
            ("<think>a<answer>b</answer>", False),
        ],
    )
    def test_think_answer_is_the_classic_expression(self, text, right):
        import re

        assert format.format([text]) == [float(right)]
        classic = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text.strip(), re.DOTALL)
        assert bool(classic) is right

    def test_boxed(self):
        kinds = [
            "<think>a</think> \\boxed{3}",
            "<think>\\boxed{3}</think> 3",
            "\\boxed{3}",
            "<think>a</think> \\boxed{3",
        ]
        assert format.format(kinds, kind="boxed") == [1, 0, 0, 0]

    def test_answer(self):
        assert format.format(["<answer>3</answer>", "<answer></answer>", "3"], kind="answer") == [1, 0, 0]

    def test_unknown_kind(self):
        with pytest.raises(RewardError, match="did you mean 'boxed'"):
            format.format(["x"], kind="box")

    @pytest.mark.parametrize(
        ("task", "valid", "invalid"),
        [
            ("numeric", "3", "red"),
            ("choice", "B", "the red one"),
            ("boolean", "yes", "perhaps"),
            ("temporal", "2 to 8", "soon"),
            ("box", "[1, 2, 3, 4]", "left"),
            ("exact", "red", ""),
        ],
    )
    def test_graded(self, task, valid, invalid):
        completions = [f"<answer>{valid}</answer>", f"<answer>{invalid}</answer>", valid]
        assert format.format_graded(completions, [task] * 3) == [1, 0.5, 0]
