import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown

MOVES = {"problem": "Which way?", "answer": "B", "videos": ["videos/a.mp4"], "data_type": "video",
         "problem_type": "multiple choice", "options": ["A. left", "B. right"]}  # fmt: skip
WHEN = {"problem": "When?", "answer": [0.8, 1.2], "videos": ["videos/b.mp4"], "data_type": "video",
        "problem_type": "temporal grounding"}  # fmt: skip
RED = {"problem": "<image>Red?", "answer": "yes", "images": ["images/red.png"], "data_type": "image",
       "problem_type": "boolean"}  # fmt: skip


def test_rows_of_easyvideor1(folder):
    data = opened(folder, MOVES, WHEN, RED, {"problem": "2 + 2?", "answer": 4, "problem_type": "math"})
    assert data.format == "easyvideor1"
    assert shown(data) == [
        Shown("<video>Which way?\nA. left\nB. right", [], ["a.mp4"], "B", "choice", ["A. left", "B. right"]),
        Shown("<video>When?", [], ["b.mp4"], [0.8, 1.2], "temporal"),
        Shown("<image>Red?", [(56, 56)], [], "yes", "boolean"),
        Shown("2 + 2?", [], [], 4, "math"),
    ]


def test_every_row_has_the_options_column_if_one_does(folder):
    """A reward is given an optional column only where all prompts of a batch have it."""
    assert opened(folder, MOVES, WHEN)[1].columns["options"] is None
    assert "options" not in opened(folder, WHEN)[0].columns


def test_a_type_that_the_media_contradict_is_refused(folder):
    with pytest.raises(DataError, match="column 'data_type': is 'image', but the row has videos"):
        opened(folder, {**MOVES, "data_type": "image"})
