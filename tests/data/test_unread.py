"""Columns that look like part of the prompt and that nothing reads are errors with their fix."""

import base64
import io

import pytest
from PIL import Image

from mmrl.data.check import check_dataset
from mmrl.data.datasets import open_dataset
from mmrl.data.unread import kind_of
from mmrl.errors import DataError

CHAT = [{"role": "user", "content": "x"}]


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a/b c.PNG", "image"), ("https://x.org/a.jpg?w=3", "image"), ("data:image/png;base64,AA", "image"),
        (["a.jpg", "b.jpg"], "image"), ({"bytes": _png(), "path": None}, "image"), (Image.new("RGB", (1, 1)), "image"),
        ([["0.png", "1.png"]], "image"), ("x.mp4", "video"), ([{"modality": "video", "uri": "s"}], "video"),
        ([{"type": "image", "image": "somewhere"}], "image"), ("x.wav", "audio"), ({"path": "a.mkv"}, "video"),
        ("see a.png for more", None), ("geo3k", None), ("", None), (["a.jpg", "b.mp4"], None), (3, None),
        ({"index": 3, "answer": "a.png"}, None), ("a.png\nb", None), ([], None),
        ({"left": "a.png", "right": "b.png"}, "image"), (base64.b64encode(_png()).decode(), "image"),
        ("iVBORw0KGgo", None),
    ],
)  # fmt: skip
def test_what_looks_like_a_medium(value, kind):
    assert kind_of(value) == kind


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("photo", "p.jpg", "column 'photo': holds an image that nothing reads; if the model is to see it: "
         r"data\.columns\.image=photo; if not: data\.ignore=\[photo\]"),
        ("clip", ["a.mp4"], r"holds a video that nothing reads; .*data\.columns\.video=clip"),
        ("sound", "a.wav", r"holds audio that nothing reads; if not: data\.ignore=\[sound\]"),
        ("choices", ["left", "right"], r"holds options that nothing reads; .*data\.columns\.options=choices"),
        ("choices_list", ["left", "right"], r"holds options that nothing reads; .*data\.columns\.options=choices_list"),
        ("candidates", {"A": "left", "B": "right"}, "holds options"),
        ("listed", ["A. left", "B. right"], "holds options"),
        ("conversation", CHAT, r"holds messages that nothing reads; .*data\.columns\.prompt=conversation"),
        ("chat", '[{"role": "user", "content": "x"}]', "holds messages"),
    ],
)  # fmt: skip
def test_an_unread_column_is_refused_with_the_setting_that_mends_it(column, value, message):
    row = {"prompt": "q", "solution": "a", column: value}
    with pytest.raises(DataError, match=message):
        open_dataset([row])
    [problem] = check_dataset([row]).problems
    assert problem.column == column
    assert open_dataset([row], ignore=[column])[0].columns == {"solution": "a"}
    assert open_dataset([row], elsewhere=[column])[0].columns[column] == value
    assert open_dataset([row | {column: "text"}])[0].columns[column] == "text"


def test_a_column_whose_name_says_that_it_holds_a_medium_needs_no_ending():
    for column, value, kind in (("img", "photos/17", "image"), ("video_path", "v/ab", "video")):
        with pytest.raises(
            DataError, match=rf"column '{column}': holds an? {kind} that .*data\.columns\.{kind}={column}"
        ):
            open_dataset([{"prompt": "q", column: value}])
    assert open_dataset([{"prompt": "q", "img": "yes", "image_id": "a/b"}])[0].columns["img"] == "yes"


CUTS = [
    ("video_start", 0.5, "start"),
    ("end_time", "00:07", "end"),
    ("fps", 4, "fps"),
    ("max_pixels", 784, "max_pixels"),
]


@pytest.mark.parametrize(("column", "value", "key"), CUTS)
def test_parts_and_limits_beside_a_video_are_never_dropped(column, value, key):
    row = {"prompt": "q", "solution": "a", "video": "a.mp4", column: value}
    fix = rf'write \{{"path": \.\.\., "{key}": {value!r}\}} as the video; if not meant: data\.ignore=\[{column}\]'
    with pytest.raises(DataError, match=rf"column '{column}': looks like what the video is to be read by.*; {fix}"):
        open_dataset([row])
    assert open_dataset([row], elsewhere=[column]).ids()  # a reward reads it
    assert open_dataset([row], ignore=[column]).ids() and open_dataset([row | {column: None}]).ids()
    assert open_dataset([{"prompt": "q", column: value}])[0].columns == {column: value}  # there is no video


def test_options_in_columns_of_their_own_are_seen():
    row = {"prompt": "q", "solution": "A", "A": "left", "B": "right", "C": "up"}
    with pytest.raises(DataError, match=r"A, B, C hold options that nothing reads; write them as one column `options`"):
        open_dataset([row])


@pytest.mark.parametrize(
    "names", [("option_a", "option_b"), ("Option A", "Option B"), ("choice1", "choice2"), ("opt0", "opt1")]
)
def test_whatever_columns_of_one_option_are_called(names):
    row = {"prompt": "q", "solution": "left"} | dict(zip(names, ("left", "right"), strict=True))
    with pytest.raises(DataError, match=f"{', '.join(names)} hold options that nothing reads"):
        open_dataset([row])
    assert open_dataset([{"prompt": "q", "solution": "left", names[0]: "left"}])[0].columns[names[0]] == "left"


def test_the_fix_that_is_printed_works(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    row = {"prompt": "q", "photo": "p.png", "choices": ["left", "right"]}
    data = open_dataset([row], columns={"image": "photo", "options": "choices"}, media_root=tmp_path)
    assert data[0].marked == "<image>q\nA. left\nB. right" and data[0].columns["options"] == ["left", "right"]
