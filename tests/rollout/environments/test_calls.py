"""The call syntax, the three environments, and the bad calls they answer in words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrl.errors import ConfigError
from mmrl.media import Clip
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Done, Here, Observation
from mmrl.rollout.environments.calculator import Calculator, calculate
from mmrl.rollout.environments.calls import BadCall, call_in
from mmrl.rollout.environments.frames import FramesBetween
from mmrl.rollout.environments.opening import environment_of
from mmrl.rollout.environments.zoom import Zoom, box_of


def call(**arguments):
    return f"I look. <tool>{json.dumps(arguments)}</tool>"


def prompt(images=(), videos=()):
    return Prompt("p", [{"role": "user", "content": "?"}], images=list(images), videos=list(videos))


class TestCalls:
    def test_an_output_without_a_call_is_an_answer(self):
        assert call_in("7") is None and call_in("a tool is <b>") is None

    def test_the_first_call_counts_and_may_end_with_the_output(self):
        assert call_in('x <tool>{"a": 1}</tool> <tool>{"a": 2}</tool>') == {"a": 1}
        assert call_in('<tool>{"a": 1}') == {"a": 1}, "a stop string may have been cut off"

    @pytest.mark.parametrize(
        "text", ["<tool></tool>", "<tool>box</tool>", "<tool>[1]</tool>", '<tool>{"a": 1} x</tool>']
    )
    def test_others_are_bad(self, text):
        with pytest.raises(BadCall):
            call_in(text)

    @given(st.text(max_size=40))
    def test_no_output_breaks_an_environment(self, text):
        picture = Image.new("RGB", (8, 8))
        for output in (text, f"<tool>{text}</tool>", f'<tool>{{"box": {json.dumps(text)}}}</tool>'):
            for environment in (Zoom(), FramesBetween(), Calculator()):
                state = environment.reset(prompt([picture], [Clip("a.mp4")]))
                assert isinstance(environment.step(state, output), Done | Observation)


class TestZoom:
    def test_a_crop_has_the_original_pixels_enlarged(self):
        picture = Image.new("RGB", (640, 320), "black")
        picture.paste("red", (160, 80, 320, 160))
        shown = Zoom(side=320).step(Zoom().reset(prompt([picture])), call(box=[250, 250, 500, 500])).images[0]
        assert shown.size == (320, 160) and shown.getcolors() == [(320 * 160, (255, 0, 0))]

    def test_a_large_crop_is_left_to_the_pixel_budget(self):
        shown = Zoom(side=64).step(Zoom().reset(prompt([Image.new("RGB", (640, 320))])), call(box=[0, 0, 1000, 1000]))
        assert shown.images[0].size == (640, 320) and not shown.bad

    def test_a_box_covers_at_least_a_pixel_and_never_leaves_the_picture(self):
        assert box_of([0, 0, 1, 1], (10, 10)) == (0, 0, 1, 1)
        assert box_of([999, 999, 1000, 1000], (10, 10)) == (9, 9, 10, 10)

    @given(st.lists(st.floats(0, 1000), min_size=4, max_size=4), st.tuples(st.integers(1, 50), st.integers(1, 50)))
    def test_any_box_within_the_frame_is_inside_the_picture(self, values, size):
        if values[0] < values[2] and values[1] < values[3]:
            left, top, right, bottom = box_of(values, size)
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]

    @pytest.mark.parametrize(
        ("arguments", "cause"),
        [
            ({"box": [0, 0, 500]}, "wrong numbers"),
            ({"box": [0, 0, 500, True]}, "wrong numbers"),
            ({"box": [0, 0, 1e400, 1]}, "wrong numbers"),
            ({"box": [500, 0, 400, 10]}, "box outside"),
            ({"box": [0, 0, 10, 1001]}, "box outside"),
            ({"bbox": [0, 0, 1, 1]}, "wrong arguments"),
            ({}, "wrong arguments"),
        ],
    )
    def test_a_bad_call_is_told_why(self, arguments, cause):
        reply = Zoom().step(Zoom().reset(prompt([Image.new("RGB", (8, 8))])), call(**arguments))
        assert reply.bad == cause and "expected" in reply.messages[0]["content"][0]["text"] and not reply.images

    def test_a_prompt_without_a_picture_says_so(self):
        assert Zoom().step(Zoom().reset(prompt()), call(box=[0, 0, 9, 9])).bad == "no picture"

    def test_an_answer_ends_it(self):
        assert Zoom().step(Zoom().reset(prompt()), "seven") == Done()


class TestFrames:
    def test_a_part_is_counted_from_the_clips_own_beginning(self):
        frames = FramesBetween()

        def step(asked, output):
            return frames.step(frames.reset(asked), output)

        assert step(prompt(videos=[Clip("a.mp4")]), call(start=1, end=2.5)).videos == (Clip("a.mp4", 1.0, 2.5),)
        assert step(prompt(videos=["a.mp4"]), call(start=1, end=2)).videos == (Clip("a.mp4", 1.0, 2.0),)
        assert step(prompt(videos=[Clip("a.mp4", 4.0, 9.0)]), call(start=1, end=2)).videos == (Clip("a.mp4", 5.0, 6.0),)

    @pytest.mark.parametrize(
        ("arguments", "cause"),
        [
            ({"start": 2, "end": 1}, "wrong times"),
            ({"start": -1, "end": 1}, "wrong times"),
            ({"start": 1, "end": 1.2}, "too short"),
            ({"start": 1, "end": 6}, "past the end"),
            ({"start": 1}, "wrong arguments"),
            ({"start": "1", "end": 2}, "wrong numbers"),
        ],
    )
    def test_a_bad_call_is_told_why(self, arguments, cause):
        frames = FramesBetween()
        reply = frames.step(frames.reset(prompt(videos=[Clip("a.mp4", 4.0, 9.0)])), call(**arguments))
        assert reply.bad == cause and not reply.videos

    @pytest.mark.parametrize(("span", "worth"), [([1, 3], 1 / 3), ([2, 4], 1), ((9, 10), 0), (None, 0), ("2-4", 0)])
    def test_how_well_the_first_part_met_the_true_span(self, span, worth):
        frames, asked = FramesBetween(), prompt(videos=[Clip("a.mp4")])
        asked.columns["span"] = span
        state = frames.reset(asked)
        for part in ({"start": 3, "end": 2}, {"start": 2, "end": 4}, {"start": 0, "end": 9}):
            frames.step(state, call(**part))
        assert frames.step(state, "red").columns == {"fetched": pytest.approx(worth)}
        assert frames.step(frames.reset(asked), "red").columns == {"fetched": 0}


class TestCalculator:
    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("3 * (4 + 5)", 27), ("-2 ** 2", -4), ("7 // 2 + 7 % 2", 4), ("sqrt(16) / 8", 0.5), ("round(2.6)", 3),
            ("abs(-3) + floor(1.9) + ceil(0.1)", 5), ("1e3", 1000), ("+5", 5),
        ],
    )  # fmt: skip
    def test_values(self, expression, value):
        assert calculate(expression) == value

    @pytest.mark.parametrize(
        ("expression", "cause"),
        [
            ("__import__('os')", "not arithmetic"), ("(1).real", "not arithmetic"), ("[1]", "not arithmetic"),
            ("x + 1", "not arithmetic"), ("1 +", "not arithmetic"), ("True", "not arithmetic"),
            ("1 if 1 else 2", "not arithmetic"),
            ("1 / 0", "division by zero"), ("9 ** 9 ** 9 ** 9", "no value"), ("sqrt(-1)", "no value"),
            ("1" * 201, "wrong arguments"), ("9" * 150, "no value"), ("'a' * 9", "not arithmetic"),
            ("(-1) ** .5", "no value"),
            ("sqrt(1, 2)", "not arithmetic"), ("lambda: 1", "not arithmetic"), ("(" * 100, "not arithmetic"),
        ],
    )  # fmt: skip
    def test_what_has_no_value_says_why(self, expression, cause):
        with pytest.raises(BadCall) as caught:
            calculate(expression)
        assert caught.value.cause == cause

    def test_the_answer_is_plain(self):
        reply = Calculator().step(prompt(), call(expression="0.1 + 0.2"))
        assert reply.messages[0]["content"][0]["text"] == "0.3"

    @given(st.integers(-(10**6), 10**6), st.integers(1, 10**6), st.sampled_from(["+", "-", "*", "/", "//", "%"]))
    def test_it_computes_as_python_does(self, a, b, sign):
        assert calculate(f"{a} {sign} {b}") == eval(f"{a} {sign} {b}")


class TestOpening:
    def test_by_name_with_parameters_of_their_type(self):
        assert environment_of({"name": "zoom", "side": 96, "max_turns": 2}).state.side == 96
        with pytest.raises(ConfigError, match="unknown parameter 'sides'; did you mean 'side'"):
            environment_of({"name": "zoom", "sides": 96})
        with pytest.raises(ConfigError, match=r"zoom.*side.*integer"):
            environment_of({"name": "zoom", "side": "big"})
        with pytest.raises(ConfigError, match="unknown environment 'zom'; did you mean 'zoom'"):
            environment_of("zom")
        with pytest.raises(ConfigError, match="max_turns=0"):
            environment_of({"name": "zoom", "max_turns": 0})

    def test_from_a_file(self, tmp_path):
        file = tmp_path / "mine.py"
        file.write_text(
            "from mmrl.rollout.environments.base import Done, Environment, Observation\n"
            "class Twice(Environment):\n"
            "    columns = {'asked': 0.0}\n"
            "    def __init__(self, *, word: str = 'again', max_turns: int = 3):\n"
            "        self.word, self.max_turns = word, max_turns\n"
            "    def reset(self, prompt):\n"
            "        return []\n"
            "    def step(self, state, output):\n"
            "        state.append(output)\n"
            "        return Observation.of(self.word) if len(state) < 2 else Done({'asked': 1.0})\n"
            "class Other:\n"
            "    pass\n"
        )
        bound = environment_of({"name": f"{file}:Twice", "word": "more"})
        here = Here(bound.state)
        (talk,) = here.reset([prompt()])
        assert here.step([talk], ["a"]) == [Observation.of("more")] and here.step([talk], ["b"]) == [
            Done({"asked": 1.0})
        ]
        assert environment_of(f"{file}:Twice").state.word == "again", "it may be named again"
        with pytest.raises(ConfigError, match="unknown name 'Twic'; did you mean 'Twice'"):
            environment_of(f"{file}:Twic")
        with pytest.raises(ConfigError, match="expected a class with `reset"):
            environment_of(f"{file}:Other")
        with pytest.raises(ConfigError, match="environment: no such file"):
            environment_of("nowhere.py:Twice")
        with pytest.raises(ConfigError, match=r"unknown parameter 'wrd'; did you mean 'word'"):
            environment_of({"name": f"{file}:Twice", "wrd": "x"})
