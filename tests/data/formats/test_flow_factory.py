import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, roles, shown

NIGHT = {"prompt": "at night", "image": "red.png", "negative_prompt": "blurry"}


def test_paths_start_from_the_folder_of_their_kind(folder):
    table = {"prompt": "on one table", "images": ["red.png", "images/blue.png"]}
    data = opened(folder, NIGHT, table, {"prompt": "on", "video": "a.mp4"})
    assert data.format == "flow_factory"
    assert shown(data) == [
        Shown("<image>at night", [(56, 56)]),
        Shown("<image><image>on one table", [(56, 56), (64, 32)]),
        Shown("<video>on", [], ["a.mp4"]),
    ]
    assert [roles(p) for p in data] == [["condition"], ["condition", "condition"], ["condition"]]


def test_a_row_that_shows_nothing_is_plain_on_its_own(folder):
    data = opened(folder, {"prompt": "on one table", "images": ["red.png"]})
    assert data.format == "mmrl"
    with pytest.raises(DataError, match=r"'red\.png' does not exist"):
        data[0]
