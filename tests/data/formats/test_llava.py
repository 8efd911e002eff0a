import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown


def turns(*said) -> list[dict]:
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(said)]


def test_the_last_answer_is_the_truth(folder):
    rows = [
        {"id": 1, "image": "images/red.png", "conversations": turns("<image>Which colour?", "red")},
        {"id": 2, "image": ["images/red.png", "images/blue.png"],
         "conversations": turns("<image><image>How many?", 2.0), "accu_reward_method": "math"},
        {"id": 3, "conversations": turns("Look.", "At what?", "At 2 + 2.", "4")},
    ]  # fmt: skip
    data = opened(folder, *rows)
    assert data.format == "llava" and data.ids() == ["1", "2", "3"]
    assert shown(data) == [
        Shown("<image>Which colour?", [(56, 56)], [], "red"),
        Shown("<image><image>How many?", [(56, 56), (64, 32)], [], 2.0, "math"),
        Shown("Look.\nAt what?\nAt 2 + 2.", [], [], "4"),
    ]
    assert [m["role"] for m in data[2].messages] == ["user", "assistant", "user"]


def test_a_video_may_stand_where_the_text_says_image(folder):
    rows = [{"id": i, "video": "videos/a.mp4", "conversations": turns(f"<{tag}>\nWhich way?", "left")}
            for i, tag in enumerate(("image", "video"))]  # fmt: skip
    assert shown(opened(folder, *rows, name="rows.json")) == [Shown("<video>\nWhich way?", [], ["a.mp4"], "left")] * 2


def test_one_id_for_different_rows_is_refused_with_the_way_out(folder):
    rows = [{"id": 1, "conversations": turns(q, "a")} for q in ("x?", "y?")]
    with pytest.raises(DataError, match=r"line 2: same id as .*line 1 \('1'\); .*data\.ignore=\[id\]"):
        opened(folder, *rows)
    assert len(set(opened(folder, *rows, ignore=["id"]).ids())) == 2
