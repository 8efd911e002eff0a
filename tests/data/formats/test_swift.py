import pytest

from mmrl.data.check import check_dataset
from mmrl.errors import DataError
from mmrl.media import FrameList, OwnSampling
from tests.data.formats.shown import Shown, opened, shown


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_frame_lists_and_limits_of_the_row(folder):
    frames = [f"frames/{i}.png" for i in range(4)]
    row = {"messages": user("<video>Which way?"), "videos": [frames], "solution": "B",
           "chat_template_kwargs": {"max_pixels": 12544, "fps": 4}}  # fmt: skip
    data = opened(folder, row)
    assert data.format == "swift"
    assert shown(data) == [Shown("<video>Which way?", [], ["4 frames"], "B")]
    assert data[0].videos == [FrameList(tuple(folder / f for f in frames), 4.0, OwnSampling(max_pixels=12544))]


def test_pixel_limits_of_the_row_hold_for_images(folder):
    row = {"messages": user("<image>Which?"), "images": ["images/red.png"], "solution": "red"}
    small = opened(folder, {**row, "chat_template_kwargs": {"max_pixels": 784}})[0]
    assert small.images[0].size == (28, 28) and small.columns["image_size"] == [56, 56]
    with pytest.raises(DataError, match="column 'chat_template_kwargs': unknown key 'max_pixel'"):
        opened(folder, {**row, "chat_template_kwargs": {"max_pixel": 784}})


def test_objects_fill_their_places_and_boxes_left_over_are_the_truth(folder):
    find = {"images": ["images/red.png"], "objects": {"ref": ["square"], "bbox": [[10, 10, 40, 40]]}}
    answered = [*user("<image>Find the <ref-object>."), {"role": "assistant", "content": "<bbox>"}]
    data = opened(
        folder,
        {"messages": user("<image>Find the <ref-object>."), **find},
        {"messages": answered, **find},
        {"messages": user("<image>What is in <bbox>?"), **find, "solution": "a <square>"},
    )
    assert shown(data) == [
        Shown("<image>Find the square.", [(56, 56)], [], [10, 10, 40, 40], "box"),
        Shown("<image>Find the square.", [(56, 56)], [], "[10, 10, 40, 40]", "box"),
        Shown("<image>What is in [10, 10, 40, 40]?", [(56, 56)], [], "a <square>"),
    ]
    with pytest.raises(DataError, match="fewer entries than there are <bbox>"):
        opened(folder, {"messages": user("<image><bbox> or <bbox>?"), **find})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"bbox_type": "norm100"}, "unknown bbox_type 'norm100'; did you mean 'norm1000'"),
        ({"bbox_type": "norm1"}, r"expected boxes of numbers from 0 to 1, got \[1, 2, 3, 4\]"),
        ({"bbox_type": "norm1000", "bbox": [["1", 2, 3, 4]]}, "expected boxes of numbers from 0 to 1000"),
        ({"image_id": [1]}, "boxes of an image other than the first"),
        ({"boxes": []}, "unknown key 'boxes'; did you mean 'bbox'"),
    ],
)
def test_a_frame_or_image_of_boxes_is_honoured_or_refused(folder, said, message):
    def row(more):
        return {
            "messages": user("<image>Where?"),
            "images": ["images/red.png"],
            "objects": {"bbox": [[1, 2, 3, 4]]} | more,
        }

    with pytest.raises(DataError, match=message):
        opened(folder, row(said))
    assert shown(opened(folder, row({"bbox_type": "real", "image_id": [0]}))) == shown(opened(folder, row({})))


@pytest.mark.parametrize(
    ("kind", "box"),
    [("norm1", [0.25, 0.5, 0.75, 1.0]), ("norm1000", [250, 500, 750, 1000]), ("real", [16, 16, 48, 32])],
)
def test_boxes_in_shares_of_the_image_become_pixels_in_the_truth_and_in_the_text(folder, kind, box):
    """The image is 64 wide and 32 high."""
    find = {"images": ["images/blue.png"], "objects": {"ref": ["it"], "bbox": [box], "bbox_type": kind}}
    find["chat_template_kwargs"] = {"max_pixels": 784}  # what the model is given does not matter
    data = opened(
        folder,
        {"messages": user("<image>Find <ref-object>."), **find},
        {"messages": user("<image>What is in <bbox>?"), **find, "solution": "sky"},
    )
    assert [s.solution for s in shown(data)] == [[16, 16, 48, 32], "sky"]
    assert shown(data)[1].text == "<image>What is in [16, 16, 48, 32]?"
    assert data[0].columns["image_size"] == [64, 32]
    assert check_dataset(data.source).problems == []


def test_shares_of_no_image_are_refused(folder):
    row = {"messages": user("Where?"), "objects": {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1"}}
    with pytest.raises(DataError, match="column 'objects': bbox_type 'norm1' needs an image"):
        opened(folder, row)
    with pytest.raises(DataError, match=r"column 'image': 'no\.png' does not exist"):
        opened(folder, row | {"images": ["no.png"]})


def test_a_solution_replaces_the_trailing_answer(folder):
    said = [*user("Which?"), {"role": "assistant", "content": "I think red."}]
    assert shown(opened(folder, {"messages": said, "solution": "red"})) == [Shown("Which?", solution="red")]


def test_queries_with_history(folder):
    row = {"query": "And 3 + 3?", "response": "6", "history": [["2 + 2?", "4"]], "system": "Count."}
    assert shown(opened(folder, row)) == [Shown("Count.\n2 + 2?\n4\nAnd 3 + 3?", solution="6")]


def test_tools_and_sound_are_refused(folder):
    with pytest.raises(DataError, match=r"column 'tools': no tools are given to the model; data\.ignore=\[tools\]"):
        opened(folder, {"messages": user("x"), "tools": "[]", "solution": "y"})
    sounds = {"messages": user("x"), "audios": ["a.wav"], "solution": "y"}
    with pytest.raises(DataError, match=r"column 'audios': holds audio that nothing reads; if not: data\.ignore"):
        opened(folder, sounds)
