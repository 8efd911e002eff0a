"""The frame of an answer in other languages: it is put into English, and what it frames is left."""

import pytest

from mmrl.rewards.languages import amounts, in_english, numeral, stated


@pytest.mark.parametrize(
    ("said", "plainly"),
    [
        ("La respuesta correcta es la B.", "the answer is B."),
        ("Die richtigen Antworten sind A und D", "the answer is A and D"),
        ("La réponse est D", "the answer is D"),
        ("정답은 B입니다", "the answer is B "),
        ("故选AC", " the answer is AC"),
        ("The answer is B.", "The answer is B."),
        ("1. C\n2. A\n3. B", "1. C\n2. A\n3. B"),
        ("un perro y un gato", "un perro y un gato"),
    ],
)
def test_stated(said, plainly):
    assert stated(said) == plainly and in_english(said) == plainly


@pytest.mark.parametrize(
    ("said", "plainly"),
    [
        ("von 65 bis 70 Sekunden", "from 65 to 70 seconds"),
        ("de 65 a 70 segundos", "from 65 to 70 seconds"),
        ("第3帧", "frame 3: "),
        ("1对应B", "1 matches B"),
        ("没有异常", "no anomaly"),
        ("Image 1 is a dog", "Image 1 is a dog"),
    ],
)
def test_in_english(said, plainly):
    assert in_english(said) == plainly


@pytest.mark.parametrize(
    ("said", "plainly"),
    [("共有二十三个", "23"), ("大约10米", "大约 10 m"), ("二十三岁的人", "二十三岁的人"), ("12 cm", "12 cm")],
)
def test_amounts(said, plainly):
    assert amounts(said) == plainly


@pytest.mark.parametrize(
    ("written", "value"),
    [("二十三", 23), ("十二", 12), ("一百零五", 105), ("两千", 2000), ("二〇二四", 2024), ("五", 5)],
)
def test_numeral(written, value):
    assert numeral(written) == value
