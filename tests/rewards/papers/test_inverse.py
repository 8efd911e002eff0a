"""RLIR: actions read back from videos."""

import random

import pytest

from mmrl.data.worlds.moves import Moves
from mmrl.errors import RewardError
from mmrl.rewards.papers.inverse import agreement, centroid_actions, check_actions, rlir

MODEL = """
def says(videos):
    return [["left", "right", "none", "none"] for _ in videos]

def heads(videos):
    return [[["w", 0.0], ["a", 1.0]] for _ in videos]
"""


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "idm.py"
    file.write_text(MODEL)
    return lambda name: f"{file}:{name}"


def clip(motion, seed=0):
    scene = {"size": 16, "frames": 5, "background": "black"}
    return Moves().render(
        scene | {"objects": [{"shape": "square", "color": "red", "motion": motion}]}, random.Random(seed)
    )


def test_the_worked_number(model):
    found = rlir([None], [["left", "right", "jump", "none"]], model=model("says"), noop="none")
    assert found == [{"score": 0.75, "moved": pytest.approx(2 / 3)}]
    lighter = rlir([None], [["left", "right", "jump", "none"]], model=model("says"), noop="none", noop_weight=0.5)
    assert lighter[0]["score"] == pytest.approx(2.5 / 3.5)


def test_heads_all_or_by_the_mean_and_numbers_by_their_distance(model):
    asked = [["w", 0.0], ["d", 1.0]]
    assert rlir([None], [asked], model=model("heads"))[0]["score"] == 0.75
    assert rlir([None], [asked], model=model("heads"), exact=True)[0]["score"] == 0.5
    assert agreement(1.0, 3.0, exact=False, scale=2.0) == pytest.approx(2.718281828**-1)
    assert agreement(1.0, float("nan"), exact=False, scale=1.0) == 0


@pytest.mark.parametrize("way", ["left", "right", "up", "down"])
def test_the_weightless_model_reads_the_worlds_clips(way):
    for seed in range(3):
        assert centroid_actions([clip(way, seed)]) == [[way] * 4]
    assert rlir([clip(way)], [[way] * 4])[0]["score"] == 1
    assert rlir([clip(way)[::-1]], [[way] * 4])[0]["score"] == 0, "the other way"
    still = [clip(way)[0]] * 5
    assert centroid_actions([still]) == [["stays"] * 4] and rlir([still], [[way] * 4])[0]["score"] == 0


def test_what_cannot_be_scored(model):
    with pytest.raises(RewardError, match="one action a step"):
        check_actions({"actions": "left"})
    with pytest.raises(RewardError, match="neither"):
        check_actions({"actions": ["left"]}, model="centroids")
    with pytest.raises(ValueError, match="4 actions for 2"):
        rlir([None], [["left", "right"]], model=model("says"))
