"""Where rows come from: JSONL, JSON, CSV, parquet, text, folders, the hub, and rows already in memory.

JSON is read with the standard library, line by line: `datasets` would turn the solution "2024-01-05" into a
date, 3 into 3.0 where another row has 2.5, and refuse the whole file for one bad line. Everything columnar is
read with `datasets`, media undecoded.
"""

from __future__ import annotations

import csv
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from mmrl.errors import ConfigError, DataError, unknown

LONGEST_REASON = 200
LONGEST_CELL = 2**28
"""Characters of a cell of a table: pictures may stand in one, as text."""

FORMS = (
    "a .jsonl, .json, .csv, .tsv, .parquet or .txt file, a folder that holds one or was saved by `datasets`, a hub "
    "name such as OWNER/NAME?split=train, or world:NAME"
)
TRAIN = ("train",)
HELD_OUT = ("test", "validation", "val", "eval", "dev")
_SHARD = re.compile(rf"(\w+?)-\d{{5}}-of-\d{{5}}(?:-\w+)?\.parquet|({'|'.join(TRAIN + HELD_OUT)})\.parquet")
_NAMED = re.compile(rf"({'|'.join(TRAIN + HELD_OUT)})(?:[_-]\w+)?")
"""A table or folder of one split: `train.csv`, `test_metadata.jsonl`, `train/`."""
HUB = re.compile(r"[\w.-]+/[\w.-]+")

WHOLE_ROW = "*"


class RowError(DataError):
    """One row that cannot be used: in which column (WHOLE_ROW: in none), and what it should be."""

    def __init__(self, column: str, message: str, fix: str = ""):
        place = "" if column == WHOLE_ROW else f"column {column!r}: "
        super().__init__(place + message + (f"; {fix}" if fix else ""))
        self.column, self.message, self.fix = column, message, fix


def _parsed(text: bytes) -> Any:
    """JSON. Raises ValueError, for a key that comes twice too: the standard library keeps the last without a word."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} comes twice")
    return made


class Rows(Protocol):
    """Rows as they are stored. `file` and `folder`: where they lie, and where their media paths start."""

    file: str
    folder: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises RowError for a row that is not a mapping of columns."""
        ...

    def where(self, index: int) -> str:
        """`train.jsonl, line 18`"""
        ...


def _as_row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(WHOLE_ROW, f"expected a row {{column: value}}, got {type(value).__name__}")
    return value


class JsonLines:
    """One JSON object a line, read where it lies; blank lines are skipped."""

    def __init__(self, path: Path):
        self.file, self.folder = str(path), path.parent
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty")
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._spans = self._find_lines()

    def _find_lines(self) -> list[tuple[int, int, int]]:
        spans, start, number = [], 0, 0
        while start < len(self._bytes):
            end = self._bytes.find(b"\n", start)
            end = len(self._bytes) if end < 0 else end
            number += 1
            if self._bytes[start:end].strip():
                spans.append((start, end, number))
            start = end + 1
        return spans

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end, _ = self._spans[index]
        try:
            return _as_row(_parsed(self._bytes[start:end]))
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or nesting as deep
            raise RowError(WHOLE_ROW, f"the line is not JSON: {str(error)[:LONGEST_REASON]}") from None

    def where(self, index: int) -> str:
        return f"{self.file}, line {self._spans[index][2]}"


class TextLines:
    """One prompt a line; blank lines are skipped."""

    format = "prompts"

    def __init__(self, path: Path):
        self.file, self.folder = str(path), path.parent
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from None
        self._lines = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": self._lines[index][1]}

    def where(self, index: int) -> str:
        return f"{self.file}, line {self._lines[index][0]}"


class Table:
    """A .csv or .tsv file: columns named in the first line, then a row a line. Cells are text, an empty one is null."""

    def __init__(self, path: Path):
        self.file, self.folder = str(path), path.parent
        lines = list(_cells(path))
        if not lines:
            raise DataError(f"{path}: is empty")
        _, self._names = lines[0]
        twice = next((n for i, n in enumerate(self._names) if not n.strip() or n in self._names[:i]), None)
        if twice is not None:
            raise DataError(f"{path}: the first line names the columns, and {twice!r} is empty or comes twice")
        self._lines = lines[1:]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        _, cells = self._lines[index]
        if len(cells) != len(self._names):
            raise RowError(WHOLE_ROW, f"holds {len(cells)} cells, and the first line names {len(self._names)} columns")
        return {name: cell or None for name, cell in zip(self._names, cells, strict=True)}

    def where(self, index: int) -> str:
        return f"{self.file}, line {self._lines[index][0]}"


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line it begins in, cells) of each row, empty lines left out. A cell in quotes may hold lines."""
    longest = csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count) if path.suffix == ".csv" else "\t"
            reader, begins = csv.reader(file, delimiter=separator, strict=True), 1
            for cells in reader:
                if cells:
                    yield begins, cells
                begins = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table in UTF-8 text: {error}") from None
    finally:
        csv.field_size_limit(longest)


class InMemory:
    """A list of rows: a .json file, or the caller's own."""

    def __init__(self, rows: Sequence[Any], file: str, folder: Path):
        self._rows, self.file, self.folder = rows, file, folder

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(_as_row(self._rows[index]))

    def where(self, index: int) -> str:
        return f"{self.file}, row {index}"


class Columnar(InMemory):
    """A `datasets.Dataset`, its images and videos left undecoded."""

    def __init__(self, dataset: Any, file: str, folder: Path):
        super().__init__(dataset.with_format("arrow"), file, folder)
        self._features = _undecoded(dataset.features)
        self._names = {name: f.names for name, f in dataset.features.items() if hasattr(f, "int2str")}

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._features.decode_example(self._rows[index].to_pylist()[0])
        for name, names in self._names.items():  # a class label is its name, not its number
            if row[name] is not None and row[name] >= 0:
                row[name] = names[row[name]]
        return row


def _undecoded(feature: Any) -> Any:
    """The same features with `decode=False` on every media column, however nested."""
    import datasets

    if isinstance(feature, datasets.Features):
        return datasets.Features({k: _undecoded(v) for k, v in feature.items()})
    if isinstance(feature, dict):
        return {k: _undecoded(v) for k, v in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return type(feature)(_undecoded(feature.feature))
    if isinstance(feature, datasets.Image | datasets.Video | datasets.Audio):
        return type(feature)(decode=False)
    return feature


def open_rows(source: Any, splits: Sequence[str] = TRAIN) -> Rows:
    """Rows of a path, a hub name, a list of rows, or a `datasets.Dataset`; DataError says what was found instead.

    splits  where a source has several and names none, as `folder?split=test` does: the first of these that it has
    """
    if isinstance(source, Mapping) and source and all(hasattr(v, "features") for v in source.values()):
        name = _choose_split(list(source), None, splits, "dataset")
        return Columnar(source[name], f"dataset?split={name}", Path.cwd())
    if hasattr(source, "features") and hasattr(source, "cast"):
        return Columnar(source, "dataset", Path.cwd())
    if isinstance(source, list | tuple):
        return InMemory(source, "rows", Path.cwd())
    if not isinstance(source, str | Path):
        fix = ', of a DataFrame frame.to_dict("records")' if hasattr(source, "to_dict") else ""
        raise DataError(f"expected {FORMS}, a list of rows or a datasets.Dataset{fix}, got {type(source).__name__}")
    path, asked, config = _read_spec(source)
    if path.is_dir():
        return _open_folder(path, asked, splits)
    if path.is_file():
        if asked is not None:
            raise DataError(f"{path}: is one data set without splits, got split {asked!r}")
        return _open_file(path)
    if HUB.fullmatch(str(path)) and path.suffix not in _OPENERS:
        return _open_hub(str(path), config, asked, splits)
    raise DataError(f"data set {str(source)!r} does not exist; expected {FORMS}")


def _read_spec(source: Any) -> tuple[Path, str | None, str | None]:
    """`folder?split=test&config=main` as path, split and config."""
    path = Path(source).expanduser()
    if path.exists() or "?" not in str(source):
        return path, None, None
    text, _, query = str(source).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in ("split", "config"):
            raise ConfigError(f"{source}: {unknown('option', key, ('split', 'config'))}")
    return Path(text).expanduser(), options.get("split"), options.get("config")


def _open_file(path: Path) -> Rows:
    if path.suffix in _OPENERS:
        return _OPENERS[path.suffix](path)
    if path.suffix == ".tar":
        raise DataError(f"{path}: {SHARDS}")
    raise DataError(f"{path}: unknown kind of data set {path.suffix!r}; expected {FORMS}")


def _refuse_outside(folder: Path) -> None:
    """DataError where the list of arrow files of a folder saved by `datasets` leads out of it."""
    path = folder / "state.json"
    try:
        listed = [str(entry["filename"]) for entry in json.loads(path.read_bytes())["_data_files"]]
    except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not what `datasets` writes: {type(error).__name__}: {error}") from None
    for name in listed:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{path}: lists {name[:LONGEST_REASON]!r}, which is outside the folder")


def _choose_split(names: Sequence[str], asked: str | None, splits: Sequence[str], where: str) -> str:
    """The split asked for, the only one, or the first of `splits` that there is."""
    if asked is not None and asked not in names:
        raise DataError(f"{where}: {unknown('split', asked, names)}")
    chosen = asked or (names[0] if len(names) == 1 else next((s for s in splits if s in names), None))
    if chosen is None:
        named = ", ".join(f"{where}?split={name}" for name in names)
        raise DataError(f"{where}: holds several splits; name one of them: {named}")
    return chosen


def _open_hub(name: str, config: str | None, asked: str | None, splits: Sequence[str]) -> Columnar:
    import datasets

    try:
        known = [str(split) for split in datasets.get_dataset_split_names(name, config)]
        chosen = _choose_split(known, asked, splits, name)
        return Columnar(datasets.load_dataset(name, config, split=chosen), f"{name}?split={chosen}", Path.cwd())
    except DataError:
        raise
    except Exception as error:  # no network, no such data set, a script of its own, a gate: the hub has many errors
        cause = str(error).strip().split("\n")[0][:200]
        raise DataError(f"data set {name!r} is no file here, and the hub does not give it: {cause}") from None


def _by_split(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the split that their names begin with, as the hub writes them; none where one of them names no split."""
    found: dict[str, list[Path]] = {}
    for path in files:
        named = _SHARD.fullmatch(path.name)
        if named is None:
            return {}
        found.setdefault(named[1] or named[2], []).append(path)
    return found


def _read_json(path: Path) -> list[Any]:
    try:
        rows = _parsed(path.read_bytes())
    except (ValueError, RecursionError) as error:
        hint = "; one object a line is JSONL: name it .jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{path}: not JSON: {error}{hint}") from None
    if not isinstance(rows, list):
        lists = [name for name, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        fix = f"; write the list under {' or '.join(map(repr, lists[:4]))} into a file of its own" if lists else ""
        raise DataError(f"{path}: expected a list of rows, got {type(rows).__name__}{fix}")
    return rows


def _read_parquet(paths: list[Path]) -> Any:
    import datasets

    try:
        return datasets.Dataset.from_parquet([str(p) for p in paths])
    except Exception as error:  # pyarrow and datasets raise many kinds; the innermost says why
        cause = error.__cause__ or error.__context__ or error
        raise DataError(f"{', '.join(map(str, paths[:3]))}: cannot be read as parquet: {cause}") from None


_OPENERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": JsonLines,
    ".json": lambda path: InMemory(_read_json(path), str(path), path.parent),
    ".csv": Table,
    ".tsv": Table,
    ".parquet": lambda path: Columnar(_read_parquet([path]), str(path), path.parent),
    ".txt": TextLines,
}
"""How a file is opened, by its ending."""
SHARDS = (
    "shards of webdataset are not read; unpack them (tar -xf), and name each file in a row of a .jsonl: "
    '{"image": "00000.jpg", "prompt": ..., "solution": ...}'
)


def _open_folder(folder: Path, asked: str | None, splits: Sequence[str]) -> Rows:
    import datasets

    if (folder / "dataset_dict.json").exists():
        names = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        name = _choose_split(names, asked, splits, str(folder))
        rows = _open_folder(folder / name, None, splits)
        rows.file, rows.folder = f"{folder}?split={name}", folder
        return rows
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if len(named := _by_split(files)) > 1:
        name = _choose_split(list(named), asked, splits, str(folder))
        return Columnar(_read_parquet(named[name]), f"{folder}?split={name}", folder)
    saved = (folder / "state.json").exists()
    if not saved and not files and (tables := _tables(folder)):
        return _open_tables(folder, tables, asked, splits)
    if asked is not None and asked not in named:
        raise DataError(f"{folder}: is one data set without splits, got split {asked!r}")
    if saved:
        _refuse_outside(folder)
        try:
            return Columnar(datasets.load_from_disk(str(folder)), str(folder), folder)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: cannot be read by datasets.load_from_disk: {error}") from None
    if files:
        return Columnar(_read_parquet(files), str(folder), folder)
    if any(folder.glob("*.tar")):
        raise DataError(f"{folder}: {SHARDS}")
    raise DataError(f"{folder}: {_inside(folder)}")


def _inside(folder: Path) -> str:
    """What a folder holds, where it is no data set."""
    inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    return (
        f"holds no table of rows and was not saved by `datasets` (it holds: {inside}); pictures alone are no data set: "
        'write a metadata.jsonl beside them, {"image": "1.png", "prompt": ..., "solution": ...}'
    )


def _tables(folder: Path) -> list[Path]:
    """Tables of a folder, or of its folders that are named like splits; not what `datasets` writes about itself."""
    about = ("dataset_infos.json", "dataset_info.json")

    def within(place: Path) -> list[Path]:
        return sorted(p for p in place.iterdir() if p.suffix in _OPENERS and p.is_file() and p.name not in about)

    if found := within(folder):
        return found
    parts = sorted(p for p in folder.iterdir() if p.is_dir() and _NAMED.fullmatch(p.name))
    return [table for part in parts for table in within(part)]


def _open_tables(folder: Path, tables: Sequence[Path], asked: str | None, splits: Sequence[str]) -> Rows:
    """The one table, or the split asked for of tables that are named like splits, by themselves or by their folder."""
    if len(tables) == 1 and asked is None:
        return _open_file(tables[0])
    shown = [_NAMED.fullmatch(p.stem if p.parent == folder else p.parent.name) for p in tables]
    names = [m[1] for m in shown if m]
    if len(names) < len(tables) or len(set(names)) < len(names):
        listed = ", ".join(map(str, tables[:8]))
        raise DataError(f"{folder}: holds {len(tables)} tables that are not named like splits; name one: {listed}")
    return _open_file(tables[names.index(_choose_split(names, asked, splits, str(folder)))])
