"""`mmrl check`: every problem counted, each named by line and column, none of them stops the scan."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data.check import SHOWN, Judge, check_dataset
from mmrl.data.datasets import open_dataset
from mmrl.data.sources import RowError
from mmrl.errors import DataError, unknown
from tests.data.clips import cut_short

GOOD = {"prompt": "Which?", "image": "red.png", "solution": "red", "task": "colour"}


@pytest.fixture
def folder(tmp_path, clip) -> Path:
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (8001, 8000)).save(tmp_path / "huge.png")
    Image.new("L", (2000, 5)).save(tmp_path / "thin.png")
    Image.effect_noise((64, 64), 99).save(tmp_path / "noise.png")
    cut_short(tmp_path / "torn.png", tmp_path / "noise.png")
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    cut_short(tmp_path / "cut.mp4", clip)
    return tmp_path


def write(folder: Path, *rows) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def knows(*tasks: str) -> Judge:
    def judge(row):
        if row.get("task") is not None and row["task"] not in tasks:
            yield RowError("task", unknown("task", row["task"], tasks))

    return judge


def test_a_good_data_set_has_no_problems_and_shows_its_first_row(folder):
    report = check_dataset(write(folder, GOOD, {**GOOD, "video": "a.mp4"}), judge=knows("colour"))
    assert (report.rows, report.total, report.problems) == (2, 0, [])
    assert report.media == {"images": 2, "videos": 1} and report.tasks == {"colour": 2}
    assert "no problems" in str(report)
    assert "  user: <image>Which?\n  solution: str 'red'" in report.preview


PROBLEMS = [
    ({**GOOD, "task": "color"}, "task", "unknown task 'color'; did you mean 'colour'"),
    ({**GOOD, "task": ["colour"]}, "task", "expected text, got list"),
    ({**GOOD, "image": "rde.png"}, "image", "'rde.png' does not exist"),
    ({**GOOD, "image": "torn.png"}, "image", "torn.png: cannot be decoded"),
    ({**GOOD, "image": "huge.png"}, "image", "8001x8000 is 64,008,000 pixels"),
    ({**GOOD, "image": "a.mp4"}, "image", "not an image in one of PNG"),
    ({**GOOD, "image": "thin.png"}, "image", "2000x5 is more than 200 times longer than wide"),
    ({**GOOD, "prompt": "How many \ud83d?"}, "prompt", r"half a character (a lone surrogate): 'How many \ud83d?'"),
    ({**GOOD, "note": ["fine", {"deep": "\udc00"}]}, "note", "half a character"),
    ({**GOOD, "image": "../red.png"}, "image", "leads outside"),
    ({**GOOD, "image": "https://example.com/a.png"}, "image", "data.allow_urls=true"),
    ({**GOOD, "video": "cut.mp4"}, "video", "cut.mp4: cannot be "),
    ({**GOOD, "video": {"path": "a.mp4", "start": 5}}, "video", "start=5 s is outside the video"),
    ({**GOOD, "image": 3}, "image", "expected a path, bytes, a data: address or an image, got int 3"),
    ({**GOOD, "video": 3}, "video", "expected a path, bytes, a data: address or an image, got int 3"),
    ({**GOOD, "image": "data:image/png;base64,@@@"}, "image", "not base64"),
    ({**GOOD, "prompt": " "}, "prompt", None),
    ({"prompt": "", "solution": "x"}, "prompt", "is empty"),
    ({**GOOD, "prompt": 3}, "prompt", "expected a string or chat messages, got int 3"),
    ({**GOOD, "prompt": "<image>a<image>"}, "prompt", "2 image place(s)"),
    ({"prompt": "a"}, "solution", "is missing"),
    ({"prompt": "a", "solution": None}, "solution", "is null"),
    ({"prompt": "a", "solution": "  "}, "solution", "is blank"),
    ({"problem": "a", "solution": "b"}, "prompt", "the row has problem"),
    ("{broken", "*", "the line is not JSON"),
    ("[1]", "*", "expected a row {column: value}, got list"),
]


UNREADABLE = [(row, column) for row, column, message in PROBLEMS if message and re.search("200 times|half a", message)]


@pytest.mark.parametrize(("row", "column"), UNREADABLE)
def test_training_refuses_in_the_same_words(folder, row, column):
    path = write(folder, row)
    [problem] = check_dataset(path, judge=knows("colour")).problems
    with pytest.raises(DataError) as refused:
        open_dataset(path)[0]
    assert f"line 1: column {column!r}: {problem.message}" in str(refused.value)
    str(check_dataset(path)).encode()  # what is printed can be


def test_a_missing_task_is_answered_with_its_setting(folder):
    path = write(folder, {"prompt": "a", "solution": "b"}, {"prompt": "c", "solution": "d", "question_type": "count"})
    first, second = check_dataset(path, ("solution", "task")).problems
    assert first.fix.startswith("data.task=choice names one task for all rows, or data.columns.task=YOURS names")
    assert second.fix.endswith("data.columns.task=question_type names the column that has it")
    assert check_dataset(path, ("solution", "task"), task="exact").total == 0


@pytest.mark.parametrize(("row", "column", "message"), PROBLEMS, ids=lambda v: str(v)[:30])
def test_each_kind_of_problem_is_named(folder, row, column, message):
    report = check_dataset(write(folder, {**GOOD, "prompt": "first"}, row), judge=knows("colour", "count"))
    if message is None:  # blank text beside an image is a prompt
        assert report.total == 0
        return
    [problem] = report.problems
    assert (problem.row, problem.column) == (1, column)
    assert problem.where.endswith("rows.jsonl, line 2")
    assert message in problem.message
    assert "a row reads: {" in str(report)


def test_all_problems_of_all_rows_are_counted_and_the_first_shown(folder):
    bad = {"prompt": "a", "image": ["x.png", "y.png"], "task": "color"}
    report = check_dataset(write(folder, *({**bad, "id": i} for i in range(9)), GOOD), judge=knows("colour"))
    assert (report.rows, report.bad_rows, report.total) == (10, 9, 36)
    assert report.counts == {"image": 18, "task": 9, "solution": 9}
    assert len(report.problems) == 36
    shown = [line for line in str(report).splitlines() if ", line " in line]
    assert len(shown) == 3  # one for each kind, with the first three rows
    assert any(
        "'x.png' does not exist" in line and line.endswith("[18 times, also line 1, line 2, ...]") for line in shown
    )
    assert any(
        "unknown task 'color'" in line and line.endswith("[9 times, also line 2, line 3, ...]") for line in shown
    )


def test_kinds_of_problems_past_the_first_are_counted(folder):
    rows = [{**GOOD, "id": i, letter * 3: "red.png"} for i, letter in enumerate("abcdefghijklmnopqrstuvw")]
    text = str(check_dataset(write(folder, *rows)))
    assert sum(", line " in line for line in text.splitlines()) == SHOWN
    assert f"... and {23 - SHOWN} more" in text


def test_repeated_rows_and_ids_are_problems(folder):
    report = check_dataset(write(folder, GOOD, {**GOOD, "id": "a"}, {"prompt": "b", "solution": 1, "id": "a"}, GOOD))
    assert [(p.row, p.column) for p in report.problems] == [(2, "id")]
    assert report.repeated == 1 and "repeated rows: 1, numbered; data.repeats=refuse" in str(report)
    refused = check_dataset(write(folder, GOOD, GOOD), repeats="refuse")
    assert [(p.row, p.column) for p in refused.problems] == [(1, "id")]


def test_rewards_say_which_columns_they_read(folder):
    path = write(folder, {"prompt": "A red circle.", "style": "flat"})
    assert check_dataset(path, rewards_columns=()).total == 0
    assert check_dataset(path, rewards_columns=("style", "boxes")).counts == {"boxes": 1}
    verl = write(folder, {"prompt": "a", "reward_model": {"ground_truth": "1"}})
    assert check_dataset(verl).total == 0


def test_one_video_in_many_rows_is_decoded_once(folder, monkeypatch):
    asked = []

    def counting(clip, sampling):
        asked.append(clip)
        raise DataError("torn")

    monkeypatch.setattr("mmrl.data.check.read_clip", counting)
    rows = [{"prompt": f"q{i}", "video": "a.mp4", "solution": 1} for i in range(4)]
    assert check_dataset(write(folder, *rows)).counts == {"video": 4}
    assert len(asked) == 1


def test_options_are_those_of_open_dataset(folder):
    path = write(folder, {"q": "x", "a": 1, "pic": "red.png"}, {"q": "y"})
    columns = {"prompt": "q", "solution": "a", "image": "pic"}
    assert check_dataset(path, columns=columns, limit=1, template="{prompt}!", system="s").total == 0
    [problem] = check_dataset(path, columns=columns).problems
    assert problem.row == 1 and "no such column" in problem.message


def test_a_world_checks_by_being_read():
    report = check_dataset("world:shapes?size=5", limit=3)
    assert (report.rows, report.total, report.media["images"]) == (3, 0, 3)


def test_no_rows_is_an_error(folder):
    (folder / "none.json").write_text("[]")
    with pytest.raises(DataError, match="holds no rows"):
        check_dataset(folder / "none.json")
