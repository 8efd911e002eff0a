"""REACT: where it looks, and what a glitch costs."""

import random

import pytest
from PIL import Image

from mmrl.errors import RewardError
from mmrl.rewards.papers.distortion import check_judge, further_frames, react, react_pairs, softmax, worth

JUDGE = """
SEEN = []

def by_red(frames):
    SEEN.append(len(frames))
    return [1.0 if frame.getpixel((0, 0))[0] > 100 else 5.0 for frame in frames]

def wild(frames):
    return [7.0] * len(frames)
"""


@pytest.fixture
def judge(tmp_path):
    file = tmp_path / "frames_judge.py"
    file.write_text(JUDGE)
    return lambda name: f"{file}:{name}"


def video(broken, count=40):
    return [Image.new("RGB", (4, 4), (255 if i in broken else 0, 0, 0)) for i in range(count)]


def test_the_low_frame_is_looked_at():
    assert softmax([5, 5, 1, 5], 0.5)[2] == pytest.approx(0.998995, abs=1e-6)
    found = further_frames({0: 5.0, 10: 5.0, 20: 1.0, 30: 5.0}, 40, 4, 0.5, random.Random(0))
    assert sorted(found) == [18, 19, 21, 22]
    assert further_frames({0: 5.0, 1: 1.0}, 3, 8, 0.5, random.Random(0)) == [2], "no frame twice, and none that is not"


def test_the_worst_share_counts():
    assert worth([5, 5, 1, 5], 0.25) == 0 and worth([5, 5, 1, 5], 1.0) == 0.75 and worth([3.0], 0.3) == 0.5


def test_a_glitch_is_found_and_costs(judge):
    whole, glitch = react([video(()), video(range(16, 22))], judge=judge("by_red"))
    assert whole["score"] == 1 and whole["frames"] == 16
    assert glitch["score"] == 0 and glitch["first"] == pytest.approx(2 / 3), "more around it are broken"
    assert react([video((5,), 6)], judge=judge("by_red"))[0]["frames"] == 6, "a short video is looked at whole"
    assert react([video((0,), 1)[0]], judge=judge("by_red"))[0]["score"] == 0, "a picture is one frame"


def test_pairs_of_a_group():
    texts = ["<answer>4</answer>", "<answer>2</answer>", "<answer>3</answer>", "no idea"]
    found = react_pairs(texts, [5, 5, 1, 1], ["a"] * 4)
    assert [each["order"] for each in found] == [0.5, 0, 0.5, 0], "one of two answers to the other video is no number"
    assert [each["score"] for each in found] == pytest.approx([0.6, 0.1, 0.6, 0])
    assert react_pairs(["3", "3"], [5, 1], ["a", "a"])[0]["order"] == 0.5
    with pytest.raises(RewardError, match="one video"):
        react_pairs(["3"], [5], ["a"])


def test_what_cannot_judge(judge):
    with pytest.raises(RewardError, match="name who scores"):
        check_judge({})
    with pytest.raises(RewardError, match="lowest=0"):
        check_judge({}, judge=judge("by_red"), lowest=0.0)
    with pytest.raises(ValueError, match="expected 1 to 5"):
        react([video(())], judge=judge("wild"))
