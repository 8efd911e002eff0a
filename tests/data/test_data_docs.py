"""Every row that docs/data.md shows opens, and its system of names is the code's."""

import re
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data.check import check_dataset
from mmrl.data.datasets import open_dataset
from mmrl.data.formats import FORMATS
from mmrl.media import VideoSampling

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
FIRST, SECOND = PAGE.read_text().split("## Formats of other projects")
TEXT_ONLY = ("prompts", "geneval", "verl_omni")


@pytest.fixture
def media(tmp_path, clip) -> Path:
    """The folder with the photos and clips that the page speaks of."""
    for folder in ("photos", "clips"):
        (tmp_path / folder).mkdir()
    for i in (1, 2):
        Image.new("RGB", (32, 24)).save(tmp_path / "photos" / f"{i}.jpg")
        (tmp_path / "clips" / f"{i}.mp4").write_bytes(clip.read_bytes())
    return tmp_path


def test_two_lines_load_each_format(media, monkeypatch, capsys):
    """Every format of the code, and no other: the row on the page, read by the two lines below it."""
    monkeypatch.chdir(media)
    Path("prompts.txt").write_text("a red cube left of a blue ball\n")
    rows = re.findall(r"```jsonl\n([^\n]*)\n```\n\n```python\ndata = open_dataset\(\"(\w+)\.jsonl\"\)", SECOND)
    for row, name in rows:
        Path(f"{name}.jsonl").write_text(row)
    blocks = re.findall(r"```python\n(data = open_dataset\([^\n]*\n[^\n]*  # (\w+)\n)```", SECOND)
    assert {name for _, name in blocks} == FORMATS.keys() and len(blocks) == len(FORMATS) == len(rows) + 1
    for lines, name in blocks:
        names = {"open_dataset": open_dataset}
        exec(lines, names)
        assert capsys.readouterr().out == f"{name}\n"
        assert names["data"][0].text.strip()
        assert names["data"][0].images or names["data"][0].videos or name in TEXT_ONLY


@pytest.mark.parametrize("number", [0, 1])
def test_the_rows_on_the_page_open(media, number):
    tmp_path = media
    blocks = re.findall(r"```jsonl\n(.*?)```", FIRST, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "rows.jsonl").write_text(blocks[number])
    data = open_dataset(tmp_path / "rows.jsonl")
    assert [len(p.messages) for p in data] == [1] * len(blocks[number].splitlines())
    report = check_dataset(tmp_path / "rows.jsonl", rewards_columns=())
    assert report.total == 0, str(report)


def test_the_page_names_every_sampling_field_and_its_default():
    table = PAGE.read_text().split("| `VideoSampling` |")[1].split("\n\n")[0]
    for name, field in VideoSampling.model_fields.items():
        row = next(line for line in table.splitlines() if f"`{name}`" in line.split("|")[1])
        if isinstance(field.default, int | float) and name not in ("factor", "frame_multiple"):
            assert f"{field.default:,.0f}" in row, (name, row)
