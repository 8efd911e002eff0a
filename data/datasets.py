"""Datasets: a specification to prompts.

    open_dataset("train.jsonl", columns={"prompt": "question"}, template="{prompt}\\nAnswer with one word.")
    open_dataset("world:shapes?split=test&size=256&difficulty=2")

Rows are parsed once on opening, so that a malformed row or a repeated id is an error before training starts;
images are opened when a prompt is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from mmrl.data.images import MediaAccess
from mmrl.data.prompts import Prompts
from mmrl.data.rows import open_row, parse_row, present
from mmrl.data.sources import Rows, open_rows
from mmrl.errors import ConfigError, DataError, unknown
from mmrl.record import Prompt

WORLD = "world:"


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
    """Prompts read from rows. `source` says where from."""

    def __init__(
        self,
        rows: Rows,
        access: MediaAccess,
        *,
        columns: Mapping[str, str] | None = None,
        system: str | None = None,
        template: str | None = None,
        limit: int | None = None,
    ):
        self.source = rows.file
        self._rows, self._access = rows, access
        self._columns, self._system, self._template = dict(columns or {}), system, template
        self._size = len(rows) if limit is None else min(limit, len(rows))
        if self._size == 0:
            raise DataError(f"{self.source}: holds no rows")
        self._ids = self._read_ids()

    def _read_ids(self) -> list[str]:
        seen: dict[str, int] = {}
        for index in range(self._size):
            try:
                name = parse_row(self._rows[index], self._columns).id
            except DataError as error:
                raise self._located(index, error) from None
            if name in seen:
                raise DataError(
                    f"{self._rows.where(index)}: same id as {self._rows.where(seen[name])} ({name!r}); without an "
                    "`id` column, prompt, media and solution are the id: remove the repeated row or add ids"
                )
            seen[name] = index
        return list(seen)

    def _located(self, index: int, error: DataError) -> DataError:
        return DataError(f"{self._rows.where(index)}: {error} (`mmrl check` lists every bad row)")

    def __len__(self) -> int:
        return self._size

    def prompt(self, index: int) -> Prompt:
        try:
            row = parse_row(self._rows[index], self._columns)
            return open_row(row, self._access, self._system, self._template)
        except DataError as error:
            raise self._located(index, error) from None

    def ids(self) -> list[str]:
        return list(self._ids)

    def columns(self, index: int) -> dict[str, Any]:
        return parse_row(self._rows[index], self._columns).columns

    def where(self, index: int) -> str:
        return self._rows.where(index)


class PresentedWorld(Prompts):
    """The first `limit` prompts of a world, under a system prompt and a template."""

    def __init__(self, world: Any, source: str, limit: int | None, system: str | None, template: str | None):
        self.source, self._world = source, world
        self._size = len(world) if limit is None else min(limit, len(world))
        self._system, self._template = system, template

    def __len__(self) -> int:
        return self._size

    def prompt(self, index: int) -> Prompt:
        prompt = self._world[index]
        return replace(prompt, messages=present(prompt.messages, self._system, self._template))

    def ids(self) -> list[str]:
        return self._world.ids()[: self._size]


def open_dataset(
    spec: str | Path | Sequence[Mapping[str, Any]] | Any,
    *,
    columns: Mapping[str, str] | None = None,
    media_root: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    system: str | None = None,
    template: str | None = None,
    limit: int | None = None,
) -> PromptDataset | PresentedWorld:
    """Prompts of a .jsonl, .json or .parquet file, a folder, `world:NAME?option=value`, or rows in memory.

    columns        our names to theirs: {"prompt": "question", "solution": "answer"}
    media_root     folder that media paths start from and stay in; default: where the data set lies
    allow_outside  let media paths leave that folder
    allow_urls     fetch http and https images
    system         system prompt put before every row
    template       text around the last user message: "{prompt}\\nAnswer inside <answer></answer>"
    limit          only the first rows

    Raises DataError naming file, row and column.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    if isinstance(spec, str) and spec.startswith(WORLD):
        if columns or media_root:
            raise ConfigError(f"{spec}: a world takes neither `columns` nor `media_root`")
        return PresentedWorld(open_world_spec(spec), spec, limit, system, template)
    rows = open_rows(spec)
    access = media_access(rows, media_root, allow_outside, allow_urls)
    return PromptDataset(rows, access, columns=columns, system=system, template=template, limit=limit)


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
