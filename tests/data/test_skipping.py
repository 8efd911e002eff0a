"""Rows that cannot be read: the next stands in, each is named once, and there is a ceiling."""

import json

import pytest
from PIL import Image

from mmrl.data.ahead import Ahead
from mmrl.data.datasets import open_dataset
from mmrl.data.skipping import Skipping
from mmrl.errors import DataError
from mmrl.record import Prompt


@pytest.fixture
def rows(tmp_path):
    """Six rows with an image each; those of rows 2, 3 and 5 are damaged."""
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        if number in (2, 3, 5):
            path.write_bytes(path.read_bytes()[:20])
    lines = [json.dumps({"id": str(n), "prompt": "<image>x", "image": f"{n}.png"}) for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return open_dataset(tmp_path / "rows.jsonl")


def test_the_next_row_that_can_be_read_stands_in(rows, capsys):
    prompts = Skipping(rows, ceiling=0.5)
    assert [prompts[i].id for i in (0, 2, 3, 5, 2, -1)] == ["0", "4", "4", "0", "4", "0"]
    assert sorted(prompts.left_out) == [2, 3, 5]
    said = capsys.readouterr().err
    assert all(said.count(f"{n}.png: cannot be decoded") == 1 for n in (2, 3, 5))
    assert said.count("data.on_error=skip") == 3
    assert len(prompts) == 6 and prompts.ids() == list("012345") and prompts.format == rows.format


def test_made_ready_by_others_they_are_the_same_rows_and_the_same_count(rows):
    one = Skipping(rows, ceiling=0.5)
    with Ahead(rows, 2) as ahead:
        other = one.over(ahead, None)
        other.prefetch([0, 2, 3, 5])
        assert [other[i].id for i in (0, 2, 3, 5)] == [one[i].id for i in (0, 2, 3, 5)]
    assert one.left_out is other.left_out


def test_past_the_ceiling_it_stops(rows):
    prompts = Skipping(rows, ceiling=0.2)
    with pytest.raises(DataError, match=r"2 of 6 rows cannot be read, data.skip_ceiling=0.2 allows 1.*3.png"):
        prompts[2]
    one = Skipping(rows, ceiling=0.0)
    assert one[5].id == "0", "one may always be left out"


def test_a_clip_is_read_where_it_is_asked_for(capsys):
    def read(clip):
        if clip == "damaged":
            raise DataError("damaged: its last box ends at byte 900 of 700")

    prompts = Skipping([Prompt(c, [], [], [c], {}) for c in ("damaged", "good")], 0.5, read)
    assert prompts[0].id == "good"
    assert "byte 900" in capsys.readouterr().err
    assert Skipping([Prompt("damaged", [], [], ["damaged"], {})], 0.5)[0].id == "damaged", "without `read` nobody looks"


def test_other_errors_are_not_of_the_rows():
    class Broken(list):
        def __getitem__(self, index):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Skipping(Broken([1]), 1.0)[0]
