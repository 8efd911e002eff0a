"""Formats as a whole: each is named, recognised before its kin, and has a twin test; rows may be of several."""

from pathlib import Path

import pytest

from mmrl.data.check import check_dataset
from mmrl.data.datasets import open_dataset
from mmrl.data.formats import FORMATS, MODULES
from mmrl.errors import ConfigError, DataError
from tests.data.formats.shown import Shown, opened, shown

CHAT = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "red"}]


def test_every_format_is_a_file_with_a_twin():
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    written = {path.stem for path in Path(__file__).parents[3].glob("data/formats/*.py")} - {"__init__", "base"}
    assert {module.__name__.rpartition(".")[2] for module in MODULES} == written
    assert written < tested
    assert all(FORMATS[name].name == name for name in FORMATS)


def test_a_format_can_be_named_and_a_wrong_name_is_refused(folder):
    row = {"prompt": "at night", "image": "red.png"}
    assert shown(opened(folder, row, format="flow_factory")) == [Shown("<image>at night", [(56, 56)])]
    with pytest.raises(ConfigError, match=r"unknown data\.format 'verll'; did you mean 'verl'\? Known: auto, easyr1"):
        opened(folder, row, format="verll")


def test_rows_of_several_formats_are_each_read_as_their_own(folder):
    rows = [{"prompt": "2 + 2?", "solution": "4"}, {"problem": "3 + 3?", "answer": "6"}, {"messages": CHAT}]
    data = opened(folder, *rows)
    assert shown(data) == [
        Shown("2 + 2?", solution="4"), Shown("3 + 3?", solution="6", task="math"), Shown("Which?", solution="red"),
    ]  # fmt: skip
    assert data.formats == {"mmrl": 1, "easyr1": 1, "sharegpt": 1}
    report = check_dataset(data.source)
    assert report.formats == data.formats
    assert "format: mmrl (rows with a prompt) 1 rows, easyr1 (EasyR1, geo3k) 1 rows" in str(report)


def test_check_names_the_format(folder):
    assert "\nformat: sharegpt (ShareGPT messages)\n" in str(check_dataset(opened(folder, {"messages": CHAT}).source))


def test_errors_name_the_column_as_the_row_does(folder):
    with pytest.raises(DataError, match="line 1: column 'problem': is empty"):
        opened(folder, {"problem": " ", "answer": "4"})
    [problem] = check_dataset(_file(folder, '{"problem": "2 + 2?", "answer": "  "}')).problems
    assert problem.column == "answer" and "is blank" in problem.message


def _file(folder: Path, text: str) -> Path:
    (folder / "one.jsonl").write_text(text)
    return folder / "one.jsonl"


def test_splits_are_chosen_by_name_or_by_use(folder):
    import datasets

    from mmrl.data.sources import HELD_OUT

    splits = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "test", "extra")}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    read = {spec: open_dataset(f"{folder}/{spec}")[0].text for spec in ("saved", "saved?split=extra", "saved/test")}
    assert read == {"saved": "train", "saved?split=extra": "extra", "saved/test": "test"}
    assert open_dataset(folder / "saved").source.endswith("saved?split=train")
    assert open_dataset(folder / "saved", splits=HELD_OUT)[0].text == "test"
    assert open_dataset(datasets.DatasetDict(splits))[0].text == "train"
    assert open_dataset(datasets.DatasetDict({"only": splits["extra"]}), splits=HELD_OUT)[0].text == "extra"


@pytest.mark.parametrize("inside", [".", "data"])
@pytest.mark.parametrize(
    "shards", [("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"), ("train", "test")]
)
def test_a_folder_of_parquet_files_of_several_splits_is_never_read_as_one(folder, inside, shards):
    import datasets

    place = folder / "cloned" / inside
    place.mkdir(parents=True)
    for name in shards:
        datasets.Dataset.from_list([{"prompt": name}]).to_parquet(place / f"{name}.parquet")
    trained, held = open_dataset(folder / "cloned"), open_dataset(f"{folder / 'cloned'}?split=test")
    assert [p.text for p in trained] == [n for n in shards if n.startswith("train")]
    assert [p.text for p in held] == [n for n in shards if n.startswith("test")]
    with pytest.raises(DataError, match="unknown split 'tset'; did you mean 'test'"):
        open_dataset(f"{folder / 'cloned'}?split=tset")
    (place / "other.parquet").write_bytes((place / f"{shards[0]}.parquet").read_bytes())
    assert len(open_dataset(folder / "cloned")) == len(shards) + 1  # names that say nothing: one data set


def test_class_labels_are_read_by_name():
    import datasets

    features = datasets.Features(
        {"prompt": datasets.Value("string"), "solution": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = datasets.Dataset.from_dict({"prompt": ["x?", "y?"], "solution": [1, None]}, features=features)
    assert [s.solution for s in shown(open_dataset(rows))] == ["dog", None]


def test_a_key_that_comes_twice_is_refused(folder):
    with pytest.raises(DataError, match="line 1: the line is not JSON: the key 'solution' comes twice"):
        open_dataset(_file(folder, '{"prompt": "x?", "solution": "a", "solution": "b"}'))


def test_what_is_no_data_set_is_refused_by_its_type():
    with pytest.raises(DataError, match=r"expected a \.jsonl, .* or a datasets\.Dataset, got list_iterator"):
        open_dataset(iter([{"prompt": "x?"}]))


def test_a_hub_name_without_a_network_is_one_clear_line():
    with pytest.raises(
        DataError, match=r"^data set 'nobody/nothing' is no file here, and the hub does not give it: "
    ) as e:
        open_dataset("nobody/nothing?split=train")
    assert "\n" not in str(e.value)
