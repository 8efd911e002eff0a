"""A reward of pictures on every frame of a video, with a named pooling."""

import math

import pytest

from mmrl.errors import ConfigError
from mmrl.rewards.calls import Inputs, Outcome
from mmrl.rewards.frames import POOLINGS, framewise
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts
from tests.rewards.pictures import plain

REDS = [10, 60, 20]
CLIP = [plain((red, 0, 0)) for red in REDS]


def redness(completions, most=100.0):
    return [image.getpixel((0, 0))[0] / most for image in completions]


def graded(completions):
    return [{"red": image.getpixel((0, 0))[0], "success": image.getpixel((0, 0))[0] > 15} for image in completions]


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", 0.3), ("min", 0.1), ("max", 0.6), ("median", 0.2), ("first", 0.1), ("last", 0.2)]
)
def test_each_pooling_by_hand(tmp_path, pooling, expected):
    (tmp_path / "mine.py").write_text(
        "def redness(completions, most=100.0):\n    return [i.getpixel((0, 0))[0] / most for i in completions]\n"
    )
    spec = {"name": f"{tmp_path / 'mine.py'}:redness", "frames": pooling}
    with RewardPanel([spec]) as panel:
        assert panel.score([CLIP, CLIP[:1]], prompts(2)).reward.tolist() == pytest.approx([expected, 0.1])
    assert set(POOLINGS) == {"mean", "min", "max", "median", "first", "last"}


def test_a_registered_reward_reads_every_frame_with_its_columns():
    rows = prompts(2, color=["black", "red"])
    clip = [plain((0, 0, 0)), plain((220, 30, 30))]
    with RewardPanel([{"name": "color_share", "frames": "mean"}]) as panel:
        assert panel.score([clip, clip + clip[1:]], rows).reward.tolist() == pytest.approx([0.5, 2 / 3])


def test_answers_of_several_keys_are_pooled_one_by_one():
    def call(inputs: Inputs) -> list[Outcome]:
        return [Outcome({k: float(v) for k, v in each.items()}) for each in graded(inputs.completions)]

    (row,) = framewise(call, "min")(Inputs(["p"], [CLIP], {}))
    assert row.values == {"red": 10, "success": 0}


def test_a_row_lacks_what_one_of_its_frames_lacks():
    def call(inputs: Inputs) -> list[Outcome]:
        return [Outcome({"a": 1.0}), Outcome({"a": math.nan}, {"a": "NaN"}), Outcome({"a": 1.0})]

    (row,) = framewise(call, "max")(Inputs(["p"], [CLIP], {}))
    assert math.isnan(row.values["a"]) and row.problems == {"a": "frame 1: NaN"}


def test_what_is_no_video_is_unscored_and_says_so():
    with RewardPanel([{"name": "jpeg_compressibility", "frames": "mean"}], unscored_ceiling=0.9) as panel:
        scores = panel.score([CLIP[0], CLIP], prompts(2))
    assert math.isnan(scores.reward[0]) and scores.reward[1] < 0
    assert "reads videos, lists of images; got a Image" in next(iter(scores.causes))


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ConfigError, match=r"rewards\.frames: Input should be 'mean', 'min'"):
        RewardPanel([{"name": "jpeg_compressibility", "frames": "average"}])
