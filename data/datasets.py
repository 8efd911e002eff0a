"""Datasets: a specification to prompts.

    open_dataset("train.jsonl", columns={"prompt": "question"}, template="{prompt}\\nAnswer with one word.")
    open_dataset("world:shapes?split=test&size=256&difficulty=2")

Rows are parsed once on opening, so that a malformed row is an error before training starts; images are opened when a
prompt is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from mmrl.data.formats import AUTO, Recogniser
from mmrl.data.images import MediaAccess, Sizing
from mmrl.data.messages import present
from mmrl.data.prompts import Prompts
from mmrl.data.rows import Row, RowReader
from mmrl.data.sources import TRAIN, RowError, Rows, open_rows
from mmrl.errors import ConfigError, DataError, unknown
from mmrl.record import Prompt

WORLD = "world:"
SAMPLED = 64
"""Rows looked at to know the format of a data set whose rows do not all show it."""
OPTIONAL = ("options", "image_size", "resized_size")
"""Columns that a reward is given only where every prompt of a batch has them: null, where a row has none."""
Repeats = Literal["number", "refuse"]


def _levels(text: str) -> int | tuple[int, int]:
    low, dash, high = text.partition("-")
    return (int(low), int(high)) if dash else int(low)


_WORLD_OPTIONS: dict[str, Callable[[str], Any]] = {
    "split": str,
    "size": int,
    "seed": int,
    "difficulty": _levels,
    "skills": lambda text: tuple(text.split(",")),
    "root": str,
}


class PromptDataset(Prompts):
    """Prompts read from rows. `source` says where from, `formats` counts the rows of each data format, `repeated` those
    that are equal to an earlier one."""

    def __init__(
        self,
        rows: Rows,
        access: MediaAccess,
        reader: RowReader,
        *,
        limit: int | None = None,
        repeats: Repeats = "number",
        sizing: Sizing | None = None,
    ):
        self.source = rows.file
        self.formats: Counter[str] = Counter()
        self._rows, self._access, self._reader, self._sizing = rows, access, reader, sizing
        self._size = len(rows) if limit is None else min(limit, len(rows))
        if self._size == 0:
            raise DataError(f"{self.source}: holds no rows")
        self._names = Names(rows, repeats)
        self._shared: set[str] = set()
        self._ids = [self._name(index) for index in range(self._size)]

    @property
    def format(self) -> str:
        """The format of most rows, and those of others."""
        return ", ".join(name for name, _ in self.formats.most_common())

    @property
    def repeated(self) -> int:
        return self._names.repeated

    def _name(self, index: int) -> str:
        try:
            row = self._reader.row(self._rows[index])
            self._reader.presented(row)
        except DataError as error:
            raise self._located(index, error) from None
        self.formats[row.format.name] += 1
        self._shared |= {name for name in OPTIONAL if row.columns.get(name) is not None}
        if row.images:
            self._shared |= {"image_size"} | ({"resized_size"} if self._sizing else set())
        try:
            return self._names.of(index, row)
        except RowError as error:
            raise DataError(f"{self._rows.where(index)}: {error.message}; {error.fix}") from None

    def _located(self, index: int, error: DataError) -> DataError:
        return DataError(f"{self._rows.where(index)}: {error} (`mmrl check` lists every bad row)")

    def __len__(self) -> int:
        return self._size

    def prompt(self, index: int) -> Prompt:
        try:
            row = self._reader.row(self._rows[index])
            prompt = self._reader.prompt(row, self._access, self._sizing)
            columns = prompt.columns | {name: None for name in self._shared if name not in prompt.columns}
            return replace(prompt, id=self._ids[index], columns=columns)
        except DataError as error:
            raise self._located(index, error) from None

    def ids(self) -> list[str]:
        return list(self._ids)

    def columns(self, index: int) -> dict[str, Any]:
        """What rewards read of the prompt at `index`. Images are looked at by their header, and not decoded."""
        try:
            row = self._reader.row(self._rows[index])
            return self._reader.columns_unopened(row, self._access, self._sizing)
        except DataError as error:
            raise self._located(index, error) from None

    def where(self, index: int) -> str:
        return self._rows.where(index)


class Names:
    """Ids unlike each other: rows that are equal to an earlier one are numbered `ID#2`, `ID#3`, ..."""

    def __init__(self, rows: Rows, repeats: Repeats):
        if repeats not in ("number", "refuse"):
            raise ConfigError(unknown("data.repeats", repeats, ("number", "refuse")))
        self._rows, self._refuse = rows, repeats == "refuse"
        self._first: dict[str, tuple[int, str]] = {}
        self._times: Counter[str] = Counter()

    @property
    def repeated(self) -> int:
        return sum(self._times.values())

    def of(self, index: int, row: Row) -> str:
        """The id of the row at `index`. Raises RowError for the id of another row."""
        name = row.id
        if name in self._first:
            first, content = self._first[name]
            again = f"same id as {self._rows.where(first)} ({name!r})"
            if content != row.content:
                raise RowError("id", again, "give other ids, or leave the column out: data.ignore=[id]")
            if self._refuse:
                fix = "remove the repeated row or add ids; data.repeats=number takes it as a prompt of its own"
                raise RowError("id", f"{again}, and the same prompt, media and solution", fix)
            self._times[name] += 1
            name = f"{name}#{self._times[name] + 1}"
            if name in self._first:
                raise RowError("id", f"a repeat of {row.id!r} would be {name!r}, which is an id already", "give ids")
        self._first[name] = index, row.content
        return name


class PresentedWorld(Prompts):
    """The first `limit` prompts of a world, under a system prompt and a template."""

    format, repeated = "world", 0

    def __init__(self, world: Any, source: str, limit: int | None, system: str | None, template: str | None):
        self.source, self._world = source, world
        self._size = len(world) if limit is None else min(limit, len(world))
        self._system, self._template = system, template
        self.formats = Counter({self.format: self._size})

    def __len__(self) -> int:
        return self._size

    def prompt(self, index: int) -> Prompt:
        prompt = self._world[index]
        return replace(prompt, messages=present(prompt.messages, self._system, self._template, prompt.columns))

    def ids(self) -> list[str]:
        return self._world.ids()[: self._size]


def open_dataset(
    spec: str | Path | Sequence[Mapping[str, Any]] | Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str = AUTO,
    splits: Sequence[str] = TRAIN,
    media_root: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    system: str | None = None,
    template: str | None = None,
    task: str | None = None,
    ignore: Collection[str] = (),
    repeats: Repeats = "number",
    limit: int | None = None,
    elsewhere: Collection[str] = (),
    sizing: Sizing | None = None,
) -> PromptDataset | PresentedWorld:
    """Prompts of a .jsonl, .json, .parquet or .txt file, a folder, a hub name, `world:NAME?option=value`, or rows in
    memory.

    columns        our names to theirs: {"prompt": "question", "solution": "answer"}
    format         a data format of `mmrl.data.formats`; "auto" recognises each row's
    splits         of several that `folder?split=test` does not choose from: the first of these
    media_root     folder that media paths start from and stay in; default: where the data set lies
    allow_outside  let media paths leave that folder
    allow_urls     fetch http and https images
    system         system prompt put before every row
    template       text around the last user message: "{prompt}\\nAnswer inside <answer></answer>", `{column}` read too
    task           of rows that name none
    ignore         columns left out
    repeats        equal rows are numbered, or refused
    limit          only the first rows
    elsewhere      columns that rewards read, so that they count as read
    sizing         how the model sizes images: fills the column `resized_size`

    Raises DataError naming file, row and column.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    if isinstance(spec, str) and spec.startswith(WORLD):
        if columns or media_root:
            raise ConfigError(f"{spec}: a world takes neither `columns` nor `media_root`")
        return PresentedWorld(open_world_spec(spec), spec, limit, system, template)
    rows = open_rows(spec, splits)
    access = media_access(rows, media_root, allow_outside, allow_urls)
    reader = RowReader(columns or {}, recogniser(rows, format), system, template, task, ignore, elsewhere, access)
    return PromptDataset(rows, access, reader, limit=limit, repeats=repeats, sizing=sizing)


def recogniser(rows: Rows, format: str) -> Recogniser:
    """What tells the formats of these rows; the kind of file says it where no row could."""
    told = getattr(rows, "format", AUTO)
    return Recogniser(told if format == AUTO else format, _readable(rows, SAMPLED))


def _readable(rows: Rows, most: int) -> Iterator[Mapping[str, Any]]:
    """The first rows that are rows; what is wrong with the others is told when their turn comes."""
    for index in range(min(most, len(rows))):
        try:
            yield rows[index]
        except RowError:
            continue


def media_access(
    rows: Rows, media_root: str | Path | None, allow_outside: bool = False, allow_urls: bool = False
) -> MediaAccess:
    root = Path(media_root).expanduser() if media_root is not None else rows.folder
    if not root.is_dir():
        raise ConfigError(f"media_root {str(root)!r} is not a folder")
    return MediaAccess(root, allow_outside, allow_urls)


def open_world_spec(spec: str) -> Any:
    """`world:motion?split=test&size=256&seed=0&difficulty=1-3`"""
    from mmrl.data.worlds import open_world

    name, _, query = spec.removeprefix(WORLD).partition("?")
    options: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in _WORLD_OPTIONS:
            raise ConfigError(f"{spec}: {unknown('option', key, _WORLD_OPTIONS)}")
        try:
            options[key] = _WORLD_OPTIONS[key](text)
        except ValueError:
            raise ConfigError(f"{spec}: {key} must be a whole number, got {text!r}") from None
    return open_world(name, **options)
