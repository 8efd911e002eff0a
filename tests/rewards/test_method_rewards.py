"""Rewards of published methods: worked numbers of the specification, limits, and what is refused."""

import json
import math

import pytest

from mmrl.data.exercises import hidden_step_row, masked_row, shuffled_row, worth_asking
from mmrl.errors import DataError, RewardError
from mmrl.objective.shaping.gates import rubric_choice
from mmrl.randomness import Key
from mmrl.rewards import exercises, structure, wording

GOLD = json.dumps([{"name": "f", "parameters": {"a": 1, "b": 2}}])


def answered(value) -> str:
    return f"<answer>{json.dumps(value)}</answer>"


class TestToolRL:
    def call(self, *calls, **options):
        made = [{"name": name, "parameters": parameters} for name, parameters in calls]
        return structure.toolrl([answered(made)], [GOLD], **options)[0]

    def test_worked_number(self):
        """One value of two is wrong: names 1, keys 1, values 1, of 4."""
        assert self.call(("f", {"a": 1, "b": 3})) == pytest.approx(1.5)

    def test_ends_of_the_scale(self):
        assert self.call(("f", {"b": 2, "a": 1})) == 3
        assert self.call(("g", {"a": 1, "b": 2})) == -3
        assert structure.toolrl(["no call at all"], [GOLD]) == [-3]
        assert self.call(("f", {"a": 1, "b": 2}), low=0.0, high=1.0) == 1

    def test_a_surplus_call_costs_its_name_and_the_best_match_is_taken(self):
        score = self.call(("f", {"a": 9}), ("f", {"a": 1, "b": 2}))
        assert score == pytest.approx(6 * (0.5 + 1 + 2) / 4 - 3)

    def test_jaccard_of_multisets(self):
        assert structure.overlap(["a", "a", "b"], ["a", "c"]) == pytest.approx(1 / 4)
        assert structure.overlap([], []) == 1 and structure.overlap([], ["a"]) == 0

    def test_a_solution_that_is_no_call_is_refused(self):
        with pytest.raises(RewardError, match="no tool call"):
            structure.toolrl(["{}"], ['{"parameters": {}}'])


class TestStructuredOutput:
    truth = json.dumps({"kind": "cat", "count": 2})

    def score(self, text, **weights):
        return structure.structured_output([text], [self.truth], **weights)[0]

    def test_layers(self):
        assert self.score(answered({"kind": "cat", "count": 2}))["structured_output"] == 1
        assert self.score("kind: cat")["structured_output"] == 0
        half = self.score(answered({"kind": "dog", "count": 2}))
        assert half == {"structured_output": pytest.approx((1 + 1 + 0.5) / 3), "validity": 1, "structure": 1,
                        "correctness": 0.5}  # fmt: skip
        assert self.score(answered({"count": 2}), validity=0.0, structure=0.0)["structured_output"] == 0.5

    def test_an_object_is_wanted(self):
        with pytest.raises(RewardError, match="no JSON object"):
            structure.structured_output(["{}"], ["[1]"])


class TestWording:
    def test_diversity_of_the_extremes(self):
        same, varied = wording.text_diversity(["yes yes yes yes. yes yes.", "A red cat sleeps. Two dogs bark loudly!"])
        assert same < 0.2 and varied == pytest.approx(1)
        assert wording.text_diversity(["", "..."]) == [0, 0]

    def test_signals_by_hand(self):
        signals = wording.diversity("a b a b")
        assert signals["distinct_ngrams"] == pytest.approx(2 / 3)
        assert signals["distinct_words"] == pytest.approx(1 / 2)
        assert signals["word_entropy"] == pytest.approx(math.log(2) / math.log(4))
        assert wording.diversity("a b. a b. c")["sentence_distance"] == pytest.approx(0.5)

    def test_semantic_reward_by_the_shipped_encoder(self):
        same, other, empty = wording.semantic_reward(
            ["<answer>a red circle</answer>", "<answer>two blue squares</answer>", "<answer> </answer>"],
            ["a red circle"] * 3,
        )
        assert same == pytest.approx(1, abs=1e-5) and 0 <= other < same and empty == 0
        shifted = wording.semantic_reward(["a red circle"], ["two blue squares"], shifted=True)[0]
        assert 0 < shifted < 1

    def test_a_critique_is_worth_its_shared_claims(self):
        person = "The light is harsh. The subject is off centre."
        right = "The light is too harsh. The colours are fine. <answer>B</answer>"
        assert wording.rm_nlhf([right], ["B"], [person]) == [pytest.approx(2 / 4)]
        assert wording.rm_nlhf([right], ["A"], [person]) == [0]
        assert wording.rm_nlhf([person + " <answer>B</answer>"], ["B"], [person]) == [1]

    def test_polar_calls_the_model_with_cut_candidates(self):
        scores = wording.polar(
            ["q"], ["a long answer"], ["ref"], scorer="tests.rewards.user_rewards.shared_letters", max_length=6
        )
        assert scores == [len(set("a long") & set("ref"))]
        assert wording.cut("abc", 2, "left") == "bc" and wording.cut("abc", None, "right") == "abc"
        with pytest.raises(RewardError, match="expected 'left' or 'right'"):
            wording.cut("abc", 2, "middle")


class TestExercises:
    def test_order_by_pairs_and_by_position(self):
        given = ["[0, 1, 3, 2]"]
        assert exercises.step_order(given, [[0, 1, 2, 3]], by="pairs") == [pytest.approx(0.833333, abs=1e-6)]
        assert exercises.step_order(given, ["[0, 1, 2, 3]"]) == [0.5]
        assert exercises.step_order(["[0, 1]", "nothing"], [[0, 1, 2]] * 2) == [0, 0], "no permutation of the steps"

    def test_masks(self):
        assert exercises.masked_fill(['["x", "Four."]', "x"], [["x", "four"]] * 2) == [1, 0]
        assert exercises.masked_fill(['["x"]'], ['["x", "y"]']) == [0.5]
        with pytest.raises(RewardError, match="no list"):
            exercises.masked_fill(["x"], ["x"])

    def test_c2(self):
        judged = answered({"preference": "A", "rubric": "helpful"})
        assert exercises.c2([judged] * 2, ["A", "B"], ["misleading", "helpful"]) == pytest.approx([0.7, 0.4])
        assert exercises.c2([judged, "A"], ["A", "A"]) == pytest.approx([0.7, 0])
        assert rubric_choice([0.5, -0.1, -0.6, 0.1], -0.2) == (0, 2)

    def test_rows_are_answered_by_their_solutions(self):
        masked = masked_row("2 + 2 = 4, so 4 + 4 = 8", ["2 + 2", "8"])
        assert masked["prompt"].endswith("[MASK] = 4, so 4 + 4 = [MASK]")
        assert exercises.masked_fill([json.dumps(masked["solution"])], [masked["solution"]]) == [1]
        steps = ["first", "second", "third", "fourth"]
        shuffled = shuffled_row(steps, Key(3))
        shown = [line.split(". ")[1] for line in shuffled["prompt"].split("\n\n")[1].splitlines()]
        assert [shown[n - 1] for n in shuffled["solution"]] == steps and shown != steps
        assert shuffled_row(steps, Key(3)) == shuffled
        hidden = hidden_step_row("x = 2, hence y = 4.", "y = 4", ["y = 2", "y = 8"], Key(1))
        chosen = [f"<answer>{letter}</answer>" for letter in "ABC"]
        scores = exercises.golden_goose(chosen, [hidden["solution"]] * 3, [hidden["options"]] * 3)
        assert scores.index(1) == "ABC".index(hidden["solution"]) and sum(scores) == 1
        assert hidden["options"]["ABC".index(hidden["solution"])] == "y = 4" and "[MASK]" in hidden["prompt"]
        assert worth_asking([0.9, 0.2, 0.5]) == [1, 2]

    def test_rows_that_make_no_sense_are_refused(self):
        with pytest.raises(DataError, match="does not follow"):
            masked_row("a b", ["b", "a"])
        with pytest.raises(DataError, match="no order"):
            shuffled_row(["one"], Key(0))
        with pytest.raises(DataError, match="other options"):
            hidden_step_row("x = 2", "y", ["z"], Key(0))
