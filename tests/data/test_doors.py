"""What a data set from elsewhere could read or break: names that are no names, and lists that lead out."""

import json

import pytest

from mmrl.data.images import MediaAccess
from mmrl.data.sources import open_rows
from mmrl.errors import DataError


def test_arrow_files_outside_the_folder_are_not_read(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"prompt": "secret"}]).save_to_disk(str(tmp_path / "secret"))
    datasets.Dataset.from_list([{"prompt": "mine"}]).save_to_disk(str(tmp_path / "mine"))
    assert open_rows(tmp_path / "mine")[0]["prompt"] == "mine"
    path = tmp_path / "mine" / "state.json"
    state = json.loads(path.read_text())
    arrow = next((tmp_path / "secret").glob("*.arrow"))
    for name in (f"../secret/{arrow.name}", str(arrow)):
        path.write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="outside the folder"):
            open_rows(tmp_path / "mine")
    path.write_text("{}")
    with pytest.raises(DataError, match="not what `datasets` writes"):
        open_rows(tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a" * 300 + "==", "if it is base64, write data:image/png"),
        ("a/" * 900, "if it is base64"),
        ("\ud800.png", "half a character"),
        ("a\0b", "control character"),
        ("a\nb.mp4", "control character"),
    ],
)
def test_what_no_file_can_be_called(tmp_path, name, why):
    with pytest.raises(DataError, match=why):
        MediaAccess(tmp_path).resolve(name)
