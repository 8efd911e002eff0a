import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown

ASKED = [{"role": "user", "content": "Which colour?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_pairs_of_trl(folder):
    """Texts, messages beside a prompt, and messages that hold it: one question, and the chosen answer is the truth."""
    image = {"images": ["images/red.png"]}
    rows = [
        {"prompt": "Which colour?", **image, "chosen": "red", "rejected": "blue"},
        {"prompt": ASKED, **image, "chosen": said("red"), "rejected": said("blue")},
        {"id": "whole", **image, "chosen": [*ASKED, *said("red")], "rejected": [*ASKED, *said("blue")]},
    ]
    data = opened(folder, *rows)
    assert data.format == "preference"
    assert shown(data) == [Shown("<image>Which colour?", [(56, 56)], [], "red")] * 3
    assert [prompt.columns["rejected"] for prompt in data] == ["blue"] * 3


def test_a_solution_of_its_own_stays(folder):
    data = opened(folder, {"prompt": "2 + 2?", "chosen": "four", "rejected": "5", "solution": "4"})
    assert data[0].columns["solution"] == "4"


def test_a_pair_that_ends_with_a_question_is_named(folder):
    with pytest.raises(DataError, match=r"line 1: column 'chosen': expected messages that end with one by 'assistant'"):
        opened(folder, {"prompt": "Which?", "chosen": ASKED, "rejected": "5"})
