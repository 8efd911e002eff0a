"""Rewards of one stretch of an output: what they are shown, and what the stretch earned."""

import io

import pytest
from PIL import Image

from mmrl.errors import RewardError
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.wire import read_message, write_message
from mmrl.told import Told

PROMPT = Prompt("p", [{"role": "user", "content": "?"}], columns={"solution": "red", "task": "exact"})
WHITE = Image.new("RGB", (2, 2), "white")


def light(completions):
    return [each.getpixel((0, 0))[0] / 255 for each in completions]


def both(completions):
    return [float(len(each.texts) + len(each.pictures)) for each in completions]


def spec(name, **options):
    return {"name": f"{__file__}:{name}", "isolated": False, **options}


def test_each_is_shown_its_stretch_and_its_weighted_answer_is_what_that_earned():
    outputs = [Told(["red", WHITE]), Told(["blue", Image.new("RGB", (2, 2))])]
    accuracy = {"name": "accuracy", "of": "text", "isolated": False, "weight": 2.0}
    with RewardPanel([accuracy, spec("light", of="picture", weight=0.5), spec("both", weight=0.1)]) as panel:
        assert panel.makes == {"action_reward": "reward 'light'"}
        scores = panel.score(outputs, [PROMPT, PROMPT])
    assert scores.reward.tolist() == pytest.approx([2.7, 0.2])
    assert scores.columns["action_reward"] == [[[0, 1, 2.0], [1, 2, 0.5]], [[0, 1, 0.0], [1, 2, 0.0]]]


def test_stretches_go_by_name():
    told = Told(["a", WHITE, "b"])
    assert (told.place("text"), told.place("text_1"), told.place("text_2"), told.place("picture_1")) == (2, 0, 2, 1)
    assert told.text == "b" and told.picture is WHITE and len(told) == 3
    with pytest.raises(KeyError, match="picture_2'; there are text, text_1, text_2, picture"):
        told.part("picture_2")


def test_what_has_no_such_stretch_is_refused():
    with (
        RewardPanel([spec("light", of="picture")]) as panel,
        pytest.raises(RewardError, match="an output is one str; `of` is for policies that write and paint"),
    ):
        panel.score(["red"], [PROMPT])
    with (
        RewardPanel([spec("light", of="picture_2")]) as panel,
        pytest.raises(RewardError, match="picture_2'; there are text, picture"),
    ):
        panel.score([Told(["red", WHITE])], [PROMPT])
    with pytest.raises(RewardError, match="two rewards make the column 'action_reward'"):
        RewardPanel([spec("light", of="picture"), spec("both", columns=["action_reward"])])


def test_it_goes_to_a_worker_and_back():
    stream = io.BytesIO()
    write_message(stream, {"out": [Told(["red", WHITE])]})
    stream.seek(0)
    (told,) = read_message(stream)["out"]
    assert told.text == "red" and told.picture.tobytes() == WHITE.tobytes()
