"""Rows in every form to prompts, and one clear line for each that cannot be one."""

import base64
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mmrl.data.datasets import open_dataset
from mmrl.data.images import Sizing
from mmrl.data.worlds import open_world
from mmrl.errors import ConfigError, DataError
from mmrl.media import Clip, FrameList

RED, BLUE = (Image.new("RGB", (6, 4), c) for c in ((255, 0, 0), (0, 0, 255)))
PLACE, CLIP = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


@pytest.fixture
def folder(tmp_path, clip) -> Path:
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    return tmp_path


@pytest.fixture
def opened(folder):
    """`opened(*rows, **options)` -> the data set of a JSONL file of these rows."""

    def write_and_open(*rows, **options):
        path = folder / "rows.jsonl"
        path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
        return open_dataset(str(path), **options)

    return write_and_open


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def colours(prompt) -> list[tuple]:
    return [image.getpixel((0, 0)) for image in prompt.images]


# ---- messages and places -----------------------------------------------------------------------------------


def test_a_text_row_is_one_user_message(opened):
    prompt = opened({"prompt": "2 + 2?", "solution": "4", "task": "numeric", "level": 3})[0]
    assert prompt.messages == user("2 + 2?")
    assert prompt.columns == {"solution": "4", "task": "numeric", "level": 3}
    assert prompt.images == prompt.videos == []


def test_media_without_a_place_go_before_the_text_of_the_last_user_message(opened):
    chat = [*user("Look."), {"role": "assistant", "content": "Yes?"}, *user("Which?")]
    data = opened(
        {"prompt": "Which?", "image": "red.png"}, {"prompt": chat, "images": ["red.png", "blue.png"], "video": "a.mp4"}
    )
    assert data[0].messages == user([PLACE, text("Which?")])
    assert data[1].messages == [*chat[:2], *user([PLACE, PLACE, CLIP, text("Which?")])]
    assert colours(data[1]) == [(255, 0, 0), (0, 0, 255)]


def test_tags_mark_places_in_strings_and_messages(opened):
    data = opened(
        {"prompt": "A <image> and <video>B<image>", "images": ["blue.png", "red.png"], "video": "a.mp4"},
        {"prompt": user("<image>\nWhich?"), "images": ["red.png"]},
        {"prompt": user([text("<image>"), text("Which?")]), "image": "red.png"},
    )
    assert data[0].messages == user([text("A "), PLACE, text(" and "), CLIP, text("B"), PLACE])
    assert colours(data[0]) == [(0, 0, 255), (255, 0, 0)]
    assert data[1].messages == user([PLACE, text("\nWhich?")])
    assert data[2].messages == user([PLACE, text("Which?")])


def test_message_parts_may_carry_their_media(opened):
    uri = "data:image/png;base64," + base64.b64encode(_png(BLUE)).decode()
    parts = [
        {"type": "image", "image": "red.png"},
        text("or"),
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "video", "video": "a.mp4", "video_start": 0.5, "video_end": 1.5},
    ]
    prompt = opened({"prompt": user(parts)})[0]
    assert prompt.messages == user([PLACE, text("or"), PLACE, CLIP])
    assert colours(prompt) == [(255, 0, 0), (0, 0, 255)]
    assert (prompt.videos[0].start, prompt.videos[0].end) == (0.5, 1.5)


def test_system_prompt_and_template_surround_the_row_but_not_its_id(opened):
    row = {"prompt": "Which?", "image": "red.png", "solution": "red"}
    plain, dressed = opened(row), opened(row, system="Be brief.", template="Q: {prompt}\nAnswer in {{braces}} {}.")
    assert dressed[0].messages == [
        {"role": "system", "content": "Be brief."},
        *user([text("Q: "), PLACE, text("Which?\nAnswer in {braces} {}.")]),
    ]
    assert plain.ids() == dressed.ids()
    assert opened({"prompt": "Which?"}, template="{prompt}!")[0].messages == user("Which?!")
    with pytest.raises(ConfigError, match=r"\{prompt\} exactly once"):
        opened(row, template="no place")[0]
    with pytest.raises(DataError, match="has one of its own"):
        opened({"prompt": [{"role": "system", "content": "x"}, *user("y")]}, system="z")[0]


def test_a_template_reads_any_column_and_fails_on_an_unknown_one(opened):
    row = {"prompt": "Which?", "hint": "It is warm.", "level": 3, "box": [1, 2], "options": ["red", "blue"]}
    dressed = opened(row, template="{hint} ({level}) {prompt}\n{options}\n{{hint}} \\boxed{}")
    assert dressed[0].text == "It is warm. (3) Which?\nA. red\nB. blue\n{hint} \\boxed{}"
    assert opened({"problem": "2 + 2?", "answer": "4"}, template="{prompt} Again: {problem}")[0].text.endswith("2 + 2?")
    for template, message in [
        ("{prompt} {hnt}", r"the template reads \{hnt\}, and the row has no such column; .*did you mean 'hint'"),
        ("{prompt} {box}", r"the template reads \{box\}, expected text or a number, got list"),
    ]:
        with pytest.raises(DataError, match=message):
            opened(row, template=template)


def test_a_tag_can_be_escaped(opened):
    data = opened({"prompt": "What does \\<image> mean beside <image>?", "image": "red.png"}, {"prompt": "\\<video>?"})
    assert data[0].messages == user([text("What does <image> mean beside "), PLACE, text("?")])
    assert data[1].messages == user("<video>?")


def test_a_last_answer_is_the_solution(opened):
    said = [*user("Which?"), {"role": "assistant", "content": "red"}]
    data = opened({"prompt": said}, {"prompt": said, "solution": "red ", "id": 1})
    assert data[0].messages == user("Which?") and data[0].columns == {"solution": "red"}
    assert data[1].columns == {"solution": "red "}


def test_columns_can_be_had_without_decoding_images(opened, folder):
    data = opened({"prompt": "q", "image": "red.png", "solution": "a"}, {"prompt": "r", "image": "gone.png"})
    assert data.columns(0) == {"solution": "a", "image_size": [6, 4]} == data[0].columns
    with pytest.raises(DataError, match=r"line 2: column 'image': 'gone\.png' does not exist"):
        data.columns(1)


def test_a_rows_own_sizes_stay(opened):
    data = opened({"prompt": "q", "image": "red.png", "image_size": [600, 400]}, sizing=Sizing(4, 1, 64))
    assert data[0].columns == {"image_size": [600, 400], "resized_size": [8, 4]}


# ---- media forms -------------------------------------------------------------------------------------------


def test_every_form_of_a_video(opened, folder, clip):
    content = base64.b64encode(clip.read_bytes()).decode()
    rows = [
        {"video": "a.mp4"},
        {"videos": ["a.mp4", {"path": "a.mp4", "start": 0.5, "end": 1}]},
        {"video": ["red.png", "blue.png"]},
        {"videos": [["red.png", "blue.png"]]},
        {"video": {"frames": ["red.png", "blue.png"], "fps": 4}},
        {"video": "data:video/mp4;base64," + content},
        {"video": {"path": "data:video/mp4;base64," + content, "start": 1}},
    ]
    data = opened(*({"prompt": f"q{i}", **row} for i, row in enumerate(rows)))
    assert data[0].videos == [Clip(folder / "a.mp4")]
    assert data[1].videos == [Clip(folder / "a.mp4"), Clip(folder / "a.mp4", 0.5, 1.0)]
    frames = (folder / "red.png", folder / "blue.png")
    assert data[2].videos == data[3].videos == [FrameList(frames)]
    assert data[4].videos == [FrameList(frames, 4.0)]
    assert data[5].videos[0].path.read_bytes() == clip.read_bytes()
    assert data[6].videos == [Clip(data[5].videos[0].path, 1.0)]


def test_images_in_bytes_are_frames_as_paths_of_images_are(opened, folder):
    stills = [(folder / name).read_bytes() for name in ("red.png", "blue.png")]
    held = [{"bytes": still, "path": None} for still in stills]
    for video in (stills, held):
        [frames] = open_dataset([{"prompt": "q", "video": video}], media_root=folder)[0].videos
        assert isinstance(frames, FrameList) and [path.read_bytes() for path in frames.paths] == stills


def test_images_open_when_asked_for_and_not_before(opened, folder):
    data = opened({"prompt": "q", "image": "red.png"}, {"prompt": "q", "image": "gone.png"})
    assert colours(data[0]) == [(255, 0, 0)]
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: column 'image': 'gone\.png' does not exist"):
        data[1]


def test_media_root_replaces_the_folder(opened, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("media")
    BLUE.save(elsewhere / "x.png")
    assert colours(opened({"prompt": "q", "image": "x.png"}, media_root=elsewhere)[0]) == [(0, 0, 255)]
    with pytest.raises(DataError, match="leads outside"):
        opened({"prompt": "q", "image": str(elsewhere / "x.png")})[0]
    assert opened({"prompt": "q", "image": str(elsewhere / "x.png")}, allow_outside=True)[0].images
    with pytest.raises(ConfigError, match="media_root"):
        opened({"prompt": "q"}, media_root=elsewhere / "none")


# ---- files -------------------------------------------------------------------------------------------------


def test_the_same_rows_from_every_kind_of_file(folder):
    rows = [{"prompt": f"q{i}", "image": "red.png", "solution": str(i)} for i in range(3)]
    (folder / "r.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (folder / "r.json").write_text(json.dumps(rows))
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "r.parquet")
    (folder / "shards").mkdir()
    RED.save(folder / "shards" / "red.png")
    for i in range(3):
        table.select([i]).to_parquet(folder / "shards" / f"{i}.parquet")
    table.save_to_disk(folder / "saved")
    RED.save(folder / "saved" / "red.png")
    data = [open_dataset(str(folder / n)) for n in ("r.jsonl", "r.json", "r.parquet", "shards", "saved")]
    data.append(open_dataset(rows, media_root=folder))
    data.append(open_dataset(table, media_root=folder))
    for other in data:
        assert other.ids() == data[0].ids() and len(other) == 3
        assert (other[2].messages, other[2].columns) == (data[0][2].messages, data[0][2].columns)
        assert colours(other[2]) == [(255, 0, 0)]


def test_columnar_media_stay_bytes_until_opened(tmp_path):
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "solution": datasets.Value("int64"),
        }
    )
    rows = [{"prompt": "a", "images": [RED], "solution": 1}, {"prompt": "b", "images": [RED, BLUE], "solution": 2}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "i.parquet")
    prompt = open_dataset(tmp_path / "i.parquet")[1]
    assert prompt.messages == user([PLACE, PLACE, text("b")])
    assert colours(prompt) == [(255, 0, 0), (0, 0, 255)]
    assert prompt.columns == {"solution": 2, "image_size": [6, 4]}


def test_columnar_messages_lose_the_nulls_that_columns_add(tmp_path):
    parts = [{"type": "text", "text": "hi", "image": None}, {"type": "image", "text": None, "image": "red.png"}]
    datasets.Dataset.from_list([{"prompt": user(parts)}]).to_parquet(tmp_path / "m.parquet")
    RED.save(tmp_path / "red.png")
    assert open_dataset(tmp_path / "m.parquet")[0].messages == user([text("hi"), PLACE])


def test_json_keeps_the_types_that_were_written(opened):
    """A date stays text and 3 stays a whole number, whatever other rows hold."""
    solutions = ["2024-01-05", 3, 2.5, ["a"], {"box": [1, 2]}]
    data = opened(*({"prompt": f"q{i}", "solution": s} for i, s in enumerate(solutions)))
    read = [data[i].columns["solution"] for i in range(len(data))]
    assert read == solutions and [type(r) for r in read] == [type(s) for s in solutions]


def test_verl_rows_bring_their_solution_along(opened):
    row = {
        "data_source": "geo3k",
        "prompt": user("<image>Angle?"),
        "images": ["red.png"],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": {"split": "train", "index": 7},
    }
    prompt = opened(row)[0]
    assert prompt.columns["solution"] == "42"
    assert prompt.columns["extra_info"] == {"split": "train", "index": 7}
    assert prompt.columns["reward_model"] == row["reward_model"]
    assert opened({**row, "solution": "own"})[0].columns["solution"] == "own"


def test_columns_are_renamed_to_ours(opened):
    row = {"question": "q", "answer": "a", "pic": "red.png"}
    prompt = opened(row, columns={"prompt": "question", "solution": "answer", "image": "pic"})[0]
    assert prompt.messages == user([PLACE, text("q")]) and prompt.columns == {"solution": "a", "image_size": [6, 4]}
    with pytest.raises(DataError, match=r"no such column .*did you mean 'answer'"):
        opened(row, columns={"prompt": "question", "solution": "anwser"})


def test_limit_takes_the_first_rows(opened):
    rows = [{"prompt": f"q{i}"} for i in range(5)]
    assert len(opened(*rows, limit=2)) == 2 and len(opened(*rows, limit=9)) == 5
    assert opened(*rows, limit=2).ids() == opened(*rows).ids()[:2]
    with pytest.raises(ConfigError, match="at least 1"):
        opened(*rows, limit=0)
    with pytest.raises(IndexError):
        opened(*rows)[5]


def test_data_sets_and_worlds_index_like_any_sequence(opened):
    world = open_dataset("world:compositions?split=test&size=5")
    for prompts in (opened(*({"prompt": f"q{i}"} for i in range(5))), world, open_world("shapes", size=5)):
        assert [p.id for p in prompts[1:3]] == prompts.ids()[1:3]
        assert prompts[-1].id == prompts[4].id == prompts.ids()[4]
        assert [p.id for p in prompts[::-2]] == prompts.ids()[::-2]
        with pytest.raises(IndexError, match="prompt -6 of 5"):
            prompts[-6]


# ---- ids ---------------------------------------------------------------------------------------------------


def test_ids_are_given_or_of_prompt_media_and_solution(opened, folder):
    base = {"prompt": "q", "image": "red.png", "solution": "1"}
    others = [
        {**base, "solution": "2"},
        {**base, "prompt": "r"},
        {**base, "image": "blue.png"},
        {**base, "id": "mine"},
        {**base, "id": 7},
    ]
    ids = opened(base, *others).ids()
    assert len(set(ids)) == 6 and ids[4:] == ["mine", "7"]
    assert opened(base).ids() == ids[:1]
    assert opened({**base, "task": "colour"}).ids() == ids[:1]


def test_an_id_does_not_depend_on_where_the_data_set_lies(tmp_path):
    ids = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        RED.save(tmp_path / name / "red.png")
        (tmp_path / name / "r.jsonl").write_text('{"prompt": "q", "image": "red.png"}')
        ids += open_dataset(tmp_path / name / "r.jsonl").ids()
    assert ids[0] == ids[1]


def test_repeated_ids_are_errors_that_name_both_rows(opened):
    with pytest.raises(DataError, match=r"line 3: same id as .*line 1 \('a'\)"):
        opened({"prompt": "x", "id": "a"}, {"prompt": "y"}, {"prompt": "z", "id": "a"})
    with pytest.raises(DataError, match="remove the repeated row or add ids"):
        opened({"prompt": "x"}, {"prompt": "x"}, repeats="refuse")
    with pytest.raises(DataError, match=r"'a#2', which is an id already"):
        opened({"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a#2"}, {"prompt": "x", "id": "a"})


def test_equal_rows_are_numbered_in_order(opened):
    data = opened({"prompt": "x"}, {"prompt": "y"}, {"prompt": "x"}, {"prompt": "x"}, {"prompt": "z", "id": "a"})
    first = data.ids()[0]
    assert data.ids()[2:4] == [f"{first}#2", f"{first}#3"] == [p.id for p in data[2:4]]
    assert data.repeated == 2 and len(set(data.ids())) == 5
    assert opened({"prompt": "z", "id": 7}, {"prompt": "z", "id": 7}).ids() == ["7", "7#2"]
    with pytest.raises(ConfigError, match="did you mean 'number'"):
        opened({"prompt": "x"}, repeats="numbers")


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "column 'prompt': is empty"),
        ({"prompt": 5}, "expected a string or chat messages, got int 5"),
        ({"prompt": []}, "expected a string or chat messages"),
        ({"question": "q"}, r"missing; the row has question; name yours: data\.columns\.prompt=question"),
        (
            {"file_name": "red.png", "question": "q", "answer": "a"},
            r"data\.columns\.prompt=question data\.columns\.solution=answer data\.columns\.image=file_name",
        ),
        ({"prompt": [{"says": "human", "value": "x"}]}, r"expected a message \{'role', 'content'\}"),
        ({"prompt": [{"role": "usr", "content": "x"}]}, "unknown role 'usr'; did you mean 'user'"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "type text, image or video"),
        ({"prompt": [{"role": "system", "content": "b"}]}, "the last message is by 'system'"),
        ({"prompt": [{"role": "assistant", "content": "b"}]}, "holds no question, only an answer"),
        ({"prompt": [*user("a"), {"role": "assistant", "content": "b"}], "solution": "c"}, "a solution of its own"),
        ({"prompt": "How many \ud83d?"}, "holds half a character"),
        ({"prompt": "<image><image>q", "image": "red.png"}, r"2 image place\(s\) in the messages, but 1 image\(s\)"),
        ({"prompt": "<video>q"}, r"1 video place\(s\) in the messages, but 0 video\(s\)"),
        ({"prompt": "q", "image": "red.png", "images": ["red.png"]}, "both 'image' and 'images' are given"),
        ({"prompt": user([{"type": "image", "image": "red.png"}]), "image": "red.png"}, "of their own"),
        ({"prompt": "q", "image": 7}, "expected a path, bytes"),
    ],
)
def test_malformed_rows_are_refused_on_opening(opened, row, message):
    with pytest.raises(DataError, match=message) as raised:
        opened({"prompt": "fine"}, row)
    assert "rows.jsonl, line 2" in str(raised.value) and "mmrl check" in str(raised.value)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"path": "a.mp4", "start": 2, "end": 1}, "start=2 is not before end=1"),
        ({"path": "a.mp4", "start": "1"}, "start: expected a number of at least 0, got str '1'"),
        ({"frames": ["red.png", "blue.png"], "fps": 0}, "fps: expected frames per second above 0"),
        ({"frames": ["red.png", "blue.png"], "start": 1}, "start is not honoured for a clip given as frame images"),
        ({"path": "a.mp4", "max_frames": 2.5}, "max_frames: expected a whole number of at least 1"),
        ({"path": "a.mp4", "min_frames": 9, "max_frames": 4}, "min_frames=9 is not before max_frames=4"),
        ({"path": "a.mp4", "nframes": 4, "fps": 2}, "both nframes and fps are given; keep one"),
        ({"path": "a.mp4", "nframes": 4, "max_frames": 8}, "both nframes and max_frames are given"),
        ({"path": "a.mp4", "resized_height": 56}, "'resized_height' is not honoured; known beside the video: start"),
        ("http://example.com/a.mp4", "is an address; download it"),
        ("b.mp4", "'b.mp4' does not exist"),
    ],
)
def test_videos_that_cannot_be_meant_are_refused(opened, video, message):
    with pytest.raises(DataError, match=message):
        opened({"prompt": "q", "video": video})[0]


def test_a_broken_line_is_named(folder):
    (folder / "b.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n')
    with pytest.raises(DataError, match=r"b\.jsonl, line 3: the line is not JSON"):
        open_dataset(folder / "b.jsonl")


def test_places_that_hold_no_data_set_say_what_they_hold(folder):
    (folder / "many").mkdir()
    table = datasets.Dataset.from_list([{"prompt": "a"}])
    datasets.DatasetDict({"easy": table, "hard": table}).save_to_disk(folder / "many")
    (folder / "e.jsonl").touch()
    (folder / "lines.json").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    (folder / "one.json").write_text('{"prompt": "a"}')
    (folder / "under.json").write_text('{"version": 1, "data": [{"prompt": "a"}]}')
    (folder / "bad.parquet").write_bytes(b"PAR1 no")
    for spec, message in [
        ("none.jsonl", "does not exist"),
        ("many", r"holds several splits; name one of them: .*many\?split=easy, .*many\?split=hard"),
        ("e.jsonl", "is empty"),
        ("lines.json", r"one object a line is JSONL: name it \.jsonl"),
        ("one.json", "expected a list of rows, got dict$"),
        ("under.json", "got dict; write the list under 'data' into a file of its own"),
        ("bad.parquet", "cannot be read as parquet"),
        ("many?split=eas", r"unknown split 'eas'; did you mean 'easy'"),
        ("many?spilt=easy", "unknown option 'spilt'; did you mean 'split'"),
        ("one.json?split=train", "is one data set without splits"),
        ("a.mp4", r"unknown kind of data set '\.mp4'"),
        (".", r"holds \d+ tables that are not named like splits; name one"),
    ]:
        if spec == ".":
            (folder / "bad.parquet").unlink()
        with pytest.raises((DataError, ConfigError), match=message):
            open_dataset(str(folder / spec))


def test_a_table_is_rows_of_text(folder):
    """Cells in quotes hold separators and lines; an empty cell is null; the separator is the one of the first line."""
    (folder / "a.csv").write_text('image,prompt,solution,hint\nred.png,"Which, of\nall?",3,\n\nblue.png,What?,02,x\n')
    data = open_dataset(str(folder / "a.csv"))
    assert [p.columns["solution"] for p in data] == ["3", "02"], "text, as it stands"
    assert data[0].marked == "<image>Which, of\nall?" and data[0].columns["hint"] is None
    assert data.where(0).endswith("a.csv, line 2") and data.where(1).endswith("a.csv, line 5")
    (folder / "b.csv").write_text("prompt;solution\na, b;1\n")
    (folder / "b.tsv").write_text("prompt\tsolution\na, b\t1\n")
    for name in ("b.csv", "b.tsv"):
        (prompt,) = open_dataset(str(folder / name))
        assert prompt.messages == user("a, b") and prompt.columns["solution"] == "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,solution\na,1\nb\n", "x.csv, line 3: holds 1 cells, and the first line names 2 columns"),
        ("prompt,prompt\na,b\n", "'prompt' is empty or comes twice"),
        ("", "is empty"),
        ("prompt,solution\n", "holds no rows"),
        ('prompt,solution\n"a,1\n', "not a table in UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_read(folder, text, message):
    (folder / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(str(folder / "x.csv"))


def test_a_folder_of_pictures_with_its_table(folder):
    pictures = folder / "pictures"
    for split in ("train", "test"):
        (pictures / split).mkdir(parents=True)
        RED.save(pictures / split / "1.png")
    (pictures / "train" / "metadata.csv").write_text("file_name,question,answer\n1.png,Which?,red\n")
    columns = {"image": "file_name", "prompt": "question", "solution": "answer"}
    assert colours(open_dataset(str(pictures), columns=columns)[0]) == [(255, 0, 0)], "the only table"
    (pictures / "test" / "metadata.jsonl").write_text('{"file_name": "1.png", "question": "Or?", "answer": "red"}\n')
    assert open_dataset(str(pictures), columns=columns)[0].marked == "<image>Which?"
    assert open_dataset(f"{pictures}?split=test", columns=columns)[0].marked == "<image>Or?"


@pytest.mark.parametrize(
    ("name", "message"), [("1.png", "pictures alone are no data set"), ("00000.tar", "shards of webdataset")]
)
def test_a_folder_that_is_no_data_set_says_what_to_write(tmp_path, name, message):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path))


# ---- worlds ------------------------------------------------------------------------------------------------


def test_a_world_is_a_data_set_by_name():
    data = open_dataset("world:shapes?split=test&size=6&seed=3&difficulty=1-2", limit=4, template="{prompt} Answer:")
    assert len(data) == 4 == len(data.ids()) and data.source.startswith("world:shapes")
    assert data[1].id == data.ids()[1]
    assert data[1].messages[-1]["content"][-1]["text"].endswith(" Answer:")
    assert np.asarray(data[1].images[0]).shape[2] == 3


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("world:shpes", DataError, "did you mean 'shapes'"),
        ("world:shapes?sise=3", ConfigError, "unknown option 'sise'; did you mean 'size'"),
        ("world:shapes?size=many", ConfigError, "size must be a whole number, got 'many'"),
    ],
)
def test_a_mistyped_world_is_an_error(spec, kind, message):
    with pytest.raises(kind, match=message):
        open_dataset(spec)
