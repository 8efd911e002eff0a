"""Composite rewards of papers: worked numbers of their formulas, limits, and what their code gets wrong."""

import math

import pytest

from mmrl.errors import RewardError
from mmrl.recipes import recipe_names
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.papers import dynframe, quality, spatial
from mmrl.rewards.presets import PRESETS, PUBLISHED
from mmrl.rewards.registry import registered
from tests.rewards.helpers import prompts, user

TABLE = "<table><tr><td>a</td><td>b</td></tr></table>"


def reward(name: str):
    return registered()[name].function


class TestMLLM4D:
    text = (
        "<thinking>The camera moves on. Camera Center: [0, 0, 1]\nObject Center: [1, 1, 1]</thinking><answer>B</answer>"
    )
    scene = {"answer": "B", "camera_center": [[0, 0, 0]], "object_center": [[1, 1, 1]]}

    def score(self, text, scene=None):
        return reward("mllm_4d")([text], [scene or self.scene])[0]["score"]

    def test_all_right_but_the_camera_is_off_by_one(self):
        assert self.score(self.text) == pytest.approx(0.6 + 0.2 + 0.1 * math.exp(-1) + 0.1)

    def test_parts(self):
        assert self.score(self.text.replace("B", "C")) == pytest.approx(0.2 + 0.1 * math.exp(-1) + 0.1)
        assert self.score("B") == 0 and self.score("<answer>B</answer>") == pytest.approx(0.6)
        assert self.score("<answer>B</answer>", {"answer": "B"}) == pytest.approx(0.8), "no centre asked, none said"

    def test_another_number_of_centres_is_worth_nothing(self):
        assert spatial.nearness([[0, 0, 0]], [[0, 0, 0], [1, 1, 1]]) == 0
        assert spatial.nearness(spatial.centres("Camera Center: [__import__('os')]", "Camera"), [[0, 0, 0]]) == 0


class TestPanoEnv:
    @pytest.mark.parametrize(
        ("said", "right", "method", "accuracy"),
        [
            ("11 m", "10 m", "distance", 1), ("11.9 meters", "10 m", "distance", 0.5), ("12.1", "10 m", "distance", 0),
            ("1 km", "1000 m", "distance", 1), ("over it on the right", "above, left", "spatial", 0.5),
            ("Behind, to the left", "back left", "spatial", 1), ("three", "3", "counting", 1),
            ("4", "3", "counting", 0),
            ("Yes", "yes", "yes_no", 1), ("the Red Car is near a wall", "red car", "mcq", 1),
            ("blue car", "red car", "mcq", 0), ("the green hill", "green hills", "other", 1),
        ],
    )  # fmt: skip
    def test_rules(self, said, right, method, accuracy):
        found = reward("panoenv")([f"<Reasoning>r</Reasoning><Answer>{said}</Answer>"], [right], [method])[0]
        assert found["accuracy"] == accuracy and found["score"] == pytest.approx(0.9 * accuracy + 0.1)


class TestQuality:
    def test_ranks(self):
        assert quality.ranks([3, 4, 2, 2], [5, 5, 1, 1], "aazz") == pytest.approx(
            [0.960870, 0.999830, 0.992491, 0.992491], abs=1e-6
        )
        assert quality.ranks([3, 3, 3, 3], [1, 1, 1, 1], "aazz") == [1] * 4, "equal, and said to be equal"
        assert quality.ranks([3, None], [5, 1], "az") == [0, 0], "nobody to compare with"

    def test_vqathinker(self):
        said = ["<think>t</think><answer>3.50</answer>", "<think>t</think><answer>3</answer>"]
        first, second = reward("vqathinker")(said, ["3.5", "3.5"], ["a", "a"])
        assert first["regression"] == 1 and second["regression"] == pytest.approx(0.8 * math.exp(-0.5))
        assert first["score"] == 2 and first["rank"] == 0

    def test_q_hawkeye(self):
        found = reward("q_hawkeye")(["<think>t</think><answer>3.5</answer>", "none"], ["3.8", "3.8"])
        assert found[0]["score"] == pytest.approx(math.exp(-1) + 0.8) and found[0]["predicted_score"] == 3.5
        assert found[1]["score"] == 0 and found[1]["parsed"] == 0
        assert quality.repetition("<answer>" + "a " * 8 + "</answer>") == -2


class TestAnswered:
    def test_vision_r1_wants_both(self):
        rows = ["<think>t</think><answer>B</answer>", "<answer>B</answer>", "<think>t</think><answer>A</answer>"]
        assert reward("vision_r1")(rows, ["B"] * 3, ["choice"] * 3) == [1, 0, 0]

    def test_lav_cot(self):
        text = "<think>french \\obj{3}</think><answer>chat</answer>"
        assert reward("lav_cot")([text], ["chat"], ["French"], [4])[0]["score"] == pytest.approx((1 + 1 + 0.75 + 1) / 4)
        arabic = reward("lav_cot")(["Arabic <think>a</think><answer>cat</answer>"], ["cat"], ["Arabic"])[0]
        assert arabic["language"] == 0, "the name of a language is not the language"

    def test_few_shot_satellite_compares_with_the_truth(self):
        box = "<reasoning>r</reasoning> <answer>[0, 0, 10, 10]</answer>"
        assert [
            row["score"] for row in reward("few_shot_satellite_rlvr")([box, box], [[0, 0, 10, 20], [50, 50, 60, 60]])
        ] == [1.5, 1]
        assert reward("few_shot_satellite_rlvr")(["<answer>Forest.</answer>"], ["forest"])[0]["score"] == 1

    def test_timemaster(self):
        rows = ["<class>Walking</class>", "<class>running</class>", "walking"]
        assert [r["score"] for r in reward("timemaster")(rows, ["walking"] * 3)] == pytest.approx([1, 0.1, 0])

    def test_table2latex(self):
        latex = "\\begin{tabular}{ll} a & b \\\\ \\end{tabular}"
        drawn = {"renderer": user("drawn")["name"]}
        assert reward("table2latex_rl")([latex], [TABLE])[0]["score"] == 1
        assert reward("table2latex_rl")([latex], [TABLE], **drawn)[0]["score"] == 2
        assert (
            reward("table2latex_rl")(["\\begin{tabular}{ll} a & b\\x \\\\ \\end{tabular}"], [TABLE], **drawn)[0][
                "looks"
            ]
            == 0
        )
        with pytest.raises(RewardError, match="no table"):
            reward("table2latex_rl")([latex], ["a, b"])


def test_bmas_by_hand():
    import torch

    from mmrl.rewards.papers.mixed_r1 import bmas

    first, second = torch.eye(2), torch.tensor([[1.0, 0], [1, 0], [0.6, 0.8]])
    assert bmas(first, second) == pytest.approx(0.5 * (0.9 + 0.933333), abs=1e-5) == pytest.approx(bmas(second, first))
    near, far, noise = reward("bmas")(["a red circle", "a blue circle", "zz qq"], ["a red circle"] * 3)
    assert near == pytest.approx(1, abs=1e-5) and 0 < far < near and noise == 0


@pytest.mark.parametrize("name", ["ton", "unifiedreward_think", "videossr", "gui_libra"])
def test_presets_of_papers_are_panels(name):
    assert name in {*PUBLISHED, *recipe_names()} and sum(part["weight"] for part in PRESETS[name]) > 0
    columns = {"solution": "1", "task": "numeric"}
    if name == "gui_libra":
        columns["solution"] = "click(1, 2)"
    said = {"gui_libra": "click(1, 2)"}.get(name, "1")
    with RewardPanel([name], workers=1) as panel:
        found = panel.score([f"<think>t</think><answer>{said}</answer>"], prompts(**columns))
    assert found.reward[0] == pytest.approx({"ton": 2, "unifiedreward_think": 2, "videossr": 1, "gui_libra": 1}[name])


class TestDynFrame:
    @pytest.mark.parametrize(("length", "worth"), [(20, 0.2222), (3, 0), (60, 0.4), (10, 0)])
    def test_half_an_overlap_by_the_length_of_the_truth(self, length, worth):
        assert dynframe.scaled((0, length / 2), (0, length)) == pytest.approx(worth, abs=1e-4)

    def test_parts(self):
        text = "<think>look</think><span>2-8</span><fps>2</fps><answer>B</answer>"
        found = reward("dynframe")([text], ["B"], ["choice"], None, [[2, 8]], [2.0])[0]
        assert (found["retrieval"], found["answer"], found["accuracy"]) == (2, 2, 1)
        off = reward("dynframe")([text], ["A"], ["choice"], None, [[4, 10]], [1.0])[0]
        assert off["retrieval"] == pytest.approx(0.5 + 0.75) and off["answer"] == 1
        none = reward("dynframe")(["<answer>B</answer>"], ["B"], ["choice"], None, [[2, 8]], [2.0])[0]
        assert none["retrieval"] == 0 and none["answer"] == pytest.approx(1.4)

    @pytest.mark.parametrize(
        ("call", "worth"),
        [('{"start": 2, "end": 8}', 1), ('{"start": 5, "end": 11}', 1 / 3), ('{"start": 8, "end": 2}', 0),
         ('{"start": 2}', 0), ("not json}", 0), ('{"start": NaN, "end": 8}', 0)],
    )  # fmt: skip
    def test_a_call_of_the_environment_is_a_span_without_a_rate(self, call, worth):
        text = f"<tool>{call}</tool><answer>B</answer>"
        found = reward("dynframe")([text], ["B"], ["choice"], None, [[2, 8]], [2.0])[0]
        assert (found["retrieval"], found["fps"]) == (pytest.approx(worth), 0)
