"""Speech that is heard: error rates, voices, tokens of a codec, and a model behind a real server."""

import base64
import io
import wave

import numpy as np
import pytest

from mmrl.errors import RewardError
from mmrl.media import Sound
from mmrl.rewards import http
from mmrl.rewards.papers.speech import check_speech, error_rate
from mmrl.rewards.registry import registered
from tests.rewards.models.http import chat, serving

HERE = __file__
EAR = f"{HERE}:ear"


def spoken(text: str, voice: float = 0.5) -> Sound:
    """A sound that says its text in its samples, letter by letter, between two of its voice."""
    letters = [ord(c) / 256 for c in text]
    return Sound(np.array([[voice, *letters, voice]], dtype=np.float32), 8000)


def ear(sounds):
    return ["".join(chr(round(float(s) * 256)) for s in sound.samples[0, 1:-1]) for sound in sounds]


def alike(sounds, speakers):
    return [1 - abs(float(sound.samples[0, 0]) - speaker) for sound, speaker in zip(sounds, speakers, strict=True)]


def unsure(sounds, speakers):
    return [None, float("nan"), 1.0]


def decoded(texts):
    return [spoken(text[3:]) if text.startswith("<s>") else None for text in texts]


def scored(completions, solution, **options):
    return registered()["speech"].function(completions=completions, solution=solution, **options)


def test_worked_error_rates():
    assert error_rate("The cat sat!", "the cat sat") == 0
    assert error_rate("the mat sat", "the cat sat") == pytest.approx(1 / 3)
    assert error_rate("the cat sat the cat sat", "the cat") == 2, "too much is worse than none"
    assert error_rate("", "the cat") == 1
    assert error_rate("\u4f60\u597d", "\u4f60\u574f") == 0.5 == error_rate("ab", "ac", characters=True)


def test_what_is_heard_and_whose_voice_it_is():
    sounds = [spoken("the cat sat", 0.5), spoken("the mat sat", 0.25), spoken("")]
    found = scored(sounds, ["the cat sat"] * 3, transcriber=EAR)
    assert [each["score"] for each in found] == pytest.approx([1, 2 / 3, 0])
    both = scored(sounds, ["the cat sat"] * 3, speaker=[0.5] * 3, transcriber=EAR, similarity=f"{HERE}:alike",
                  voice_weight=3.0)  # fmt: skip
    assert both[0]["score"] == 1 and both[1]["score"] == pytest.approx((2 / 3 + 3 * 0.75) / 4)


def test_a_voice_that_nobody_could_compare_is_unscored_and_not_worth_its_words_alone():
    found = scored([spoken("the cat")] * 3, ["the cat"] * 3, speaker=[0.5] * 3, transcriber=EAR,
                   similarity=f"{HERE}:unsure")  # fmt: skip
    assert [isinstance(each["score"], Exception) for each in found] == [True, True, False] and found[2]["score"] == 1


def test_a_policy_of_speech_tokens_is_heard_through_its_codec():
    found = scored(["<s>the cat", "no speech"], ["the cat"] * 2, transcriber=EAR, codec=f"{HERE}:decoded")
    assert [each["score"] for each in found] == [1, 0]
    with pytest.raises(RewardError, match="name option codec"):
        scored(["the cat"], ["the cat"], transcriber=EAR)


def test_a_model_behind_a_server_hears_a_wav_file(monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)
    with serving(lambda body, n: chat("The cat.")) as (url, asked):
        found = scored([spoken("hm")], ["the cat"], url=url + "/v1", model="m")
    assert found[0]["score"] == 1
    sent = asked.bodies[0]["messages"][0]["content"][0]["input_audio"]
    with wave.open(io.BytesIO(base64.b64decode(sent["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 4)
    unheard = scored([spoken("hm")], ["the cat"], url="http://127.0.0.1:9/v1", model="m", retries=0, timeout=1.0)
    assert isinstance(unheard[0]["score"], Exception), "nobody heard it: unscored, not worthless"


def test_rows_that_could_never_be_scored_are_refused():
    with pytest.raises(RewardError, match="needs somebody who hears"):
        check_speech({"solution": "the cat"})
    for row, options in (({"solution": "..."}, {}), ({"solution": "a b"}, {"similarity": "x.py:f"})):
        with pytest.raises(RewardError, match="expected"):
            check_speech(row, transcriber=EAR, **options)
    with pytest.raises(RewardError, match="got a int"):
        scored([3], ["the cat"], transcriber=EAR)
