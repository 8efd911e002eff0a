"""`mmrl check`: read every row as training will, and say what is wrong with it and what it should be.

No problem stops the scan: each is counted, the first of each kind are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmrl.data.datasets import WORLD, Names, Repeats, media_access, open_world_spec, recogniser
from mmrl.data.formats import AUTO, FORMATS
from mmrl.data.images import MediaAccess, Sizing, describe
from mmrl.data.items import Opened, open_image_item, open_video_item
from mmrl.data.rows import RIGHT_FORM, Row, RowReader, missing, with_sizes
from mmrl.data.sources import TRAIN, WHOLE_ROW, RowError, Rows, open_rows
from mmrl.data.video import read_clip
from mmrl.errors import DataError
from mmrl.media import Clip, FrameList, OwnSampling, VideoSampling
from mmrl.record import Prompt

Judge = Callable[[Mapping[str, Any]], Iterable[RowError]]

SHOWN = 20
EXAMPLES = 3
KEPT = 1000
_PROBE = VideoSampling(fps=None, min_frames=2, max_frames=2, min_pixels=28 * 28, max_pixels=64 * 28 * 28)
TRUTHS = ("answer", "ground_truth", "gt")  # columns that others have the right answer in
_NAMES = ("id", "task")
_NAMED = {WHOLE_ROW: "the whole row"}
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w<])/\S+|\d+(?:\.\d+)?")  # what one row's message has for itself


@dataclass(frozen=True)
class Problem:
    """One thing wrong: where it stands, what it is, what to write instead ("" where the message says it)."""

    file: str
    row: int
    where: str
    column: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}, {RowError(self.column, self.message, self.fix)}"

    @property
    def kind(self) -> tuple[str, str]:
        """What problems that are the same but for names and numbers have in common."""
        return self.column, _OWN.sub("_", self.message)


@dataclass
class Report:
    """What a scan found.

    problems  the first 1,000, in row order; `total` counts them all
    counts    problems by column
    kinds     problems that are the same but for names and numbers
    tasks     rows by `task`
    formats   rows by data format
    repeated  rows that are equal to an earlier one
    media     images and videos that open
    preview   the first good row, as the policy will see it
    """

    source: str
    rows: int = 0
    bad_rows: int = 0
    total: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[tuple[str, str], list[Problem]] = field(default_factory=dict)
    kind_counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    preview: str = ""

    def add(self, problem: Problem) -> None:
        self.total += 1
        self.counts[problem.column] += 1
        self.kind_counts[problem.kind] += 1
        same = self.kinds.setdefault(problem.kind, [])
        if len(same) < EXAMPLES:
            same.append(problem)
        if len(self.problems) < KEPT:
            self.problems.append(problem)

    @property
    def format(self) -> str:
        """The format of most rows, and those of others."""
        return ", ".join(name for name, _ in self.formats.most_common())

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.rows} rows, {self.media['images']} images, {self.media['videos']} videos"]
        if self.formats:
            several = len(self.formats) > 1
            named = [_titled(name) + (f" {n} rows" if several else "") for name, n in self.formats.most_common()]
            lines.append("format: " + ", ".join(named))
        if self.tasks:
            lines.append("tasks: " + ", ".join(f"{task} {n}" for task, n in self.tasks.most_common()))
        if self.repeated:
            lines.append(f"repeated rows: {self.repeated}, numbered; data.repeats=refuse refuses them")
        lines += self._problem_lines() if self.total else ["no problems"]
        return "\n".join([*lines, self.preview] if self.preview else lines)

    def _problem_lines(self) -> list[str]:
        by_column = ", ".join(f"{_NAMED.get(c, c)} {n}" for c, n in self.counts.most_common())
        lines = [f"{self.total} problems in {self.bad_rows} rows (by column: {by_column})"]
        for kind, (first, *others) in list(self.kinds.items())[:SHOWN]:
            times = self.kind_counts[kind]
            also = [other.where.removeprefix(f"{other.file}, ") for other in others]
            more = f" [{times} times, also {', '.join(also)}{', ...' if times > EXAMPLES else ''}]" if also else ""
            lines.append(f"  {first}{more}")
        if left := sum(self.kind_counts[kind] for kind in list(self.kinds)[SHOWN:]):
            lines.append(f"  ... and {left} more")
        return [*lines, f"a row reads: {RIGHT_FORM}"]


def _titled(name: str) -> str:
    return f"{name} ({FORMATS[name].title})" if name in FORMATS else name


def check_dataset(
    spec: str | Path | Any,
    rewards_columns: Sequence[str] | None = None,
    judge: Judge | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    format: str = AUTO,
    splits: Sequence[str] = TRAIN,
    media_root: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    limit: int | None = None,
    system: str | None = None,
    template: str | None = None,
    task: str | None = None,
    ignore: Collection[str] = (),
    repeats: Repeats = "number",
    elsewhere: Collection[str] = (),
    sizing: Sizing | None = None,
) -> Report:
    """Scan a data set; the options are those of `open_dataset`.

    rewards_columns  columns the rewards read: every row must have them, and not null or blank; None: `solution`,
                     if any row has one or names a `task`
    judge            from the columns of a row to what keeps rewards from scoring it

    Raises DataError only where there are no rows to scan.
    """
    if isinstance(spec, str) and spec.startswith(WORLD):
        return _check_world(spec, limit, rewards_columns or (), judge or _no_judge)
    rows = open_rows(spec, splits)
    access = media_access(rows, media_root, allow_outside, allow_urls)
    reader = RowReader(columns or {}, recogniser(rows, format), system, template, task, ignore, elsewhere, access)
    scan = _Scan(rows, access, reader, rewards_columns, judge or _no_judge, Names(rows, repeats), sizing)
    return scan.run(len(rows) if limit is None else min(limit, len(rows)))


def _no_judge(columns: Mapping[str, Any]) -> Iterable[RowError]:
    return ()


def _check_world(spec: str, limit: int | None, needed: Sequence[str], judge: Judge) -> Report:
    world = open_world_spec(spec)
    report = Report(spec, rows=min(limit or len(world), len(world)))
    for index in range(report.rows):
        prompt = world[index]
        report.media.update(images=len(prompt.images), videos=len(prompt.videos))
        report.tasks[str(prompt.columns.get("task", ""))] += 1
        report.preview = report.preview or preview(prompt)
        problems = list(_scorable(prompt.columns, needed, judge))
        report.bad_rows += bool(problems)
        for error in problems:
            report.add(Problem(spec, index, prompt.id, error.column, error.message, error.fix))
    return report


def _scorable(columns: Mapping[str, Any], needed: Sequence[str], judge: Judge) -> Iterator[RowError]:
    """What keeps rewards from scoring a row with these columns."""
    lacking = [name for name in needed if _is_empty(columns.get(name))]
    for name in lacking:
        yield missing(name, columns, "missing" if name not in columns else "null" if columns[name] is None else "blank")
    yield from (error for error in judge(columns) if error.column not in lacking)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


@dataclass
class _Scan:
    rows: Rows
    access: MediaAccess
    reader: RowReader
    rewards_columns: Sequence[str] | None
    judge: Judge
    names: Names
    sizing: Sizing | None
    clips: dict[Clip | FrameList, str] = field(default_factory=dict)

    def run(self, size: int) -> Report:
        report = Report(self.rows.file, rows=size)
        if not size:
            raise DataError(f"{self.rows.file}: holds no rows")
        if self.rewards_columns is None:
            self.rewards_columns = ("solution",) if any(map(self._answered, range(size))) else ()
        for index in range(size):
            problems = list(self._row(index, report))
            report.bad_rows += bool(problems)
            for error in problems:
                where = self.rows.where(index)
                report.add(Problem(self.rows.file, index, where, error.column, error.message, error.fix))
        report.repeated = self.names.repeated
        return report

    def _answered(self, index: int) -> bool:
        """Whether a row is of the kind that has one right answer, be it null; a caption for a generator is not."""
        try:
            columns = self.reader.parse(self.rows[index]).columns
        except RowError:  # told when its turn comes
            return False
        return "solution" in columns or any(columns.get(name) is not None for name in ("task", *TRUTHS))

    def _row(self, index: int, report: Report) -> Iterator[RowError]:
        try:
            row = self.reader.parse(self.rows[index])
            report.formats[row.format.name] += 1
            messages = self.reader.presented(row)
        except DataError as error:
            yield _as_row_error(error, "prompt")
            return
        unread = list(self.reader.unread(row))
        yield from unread
        try:
            self.names.of(index, row)
        except RowError as error:
            yield error
        failed: list[RowError] = []
        images = list(self._media(row, report, failed))
        columns = with_sizes(row.columns, images, self.sizing) if not failed else row.columns
        for problem in self._values(row, columns, report):
            yield RowError(row.names.get(problem.column, problem.column), problem.message, problem.fix)
        yield from failed
        if not failed and not unread and not report.preview:
            report.preview = preview(Prompt(row.id, messages, row.images, row.videos, columns))

    def _values(self, row: Row, columns: Mapping[str, Any], report: Report) -> Iterator[RowError]:
        named = {"id": row.raw.get("id"), "task": columns.get("task")}
        mistyped = [n for n in _NAMES if named[n] is not None and not isinstance(named[n], str | int)]
        for name in mistyped:
            yield RowError(name, f"expected text, got {describe(named[name])}")
        if isinstance(columns.get("task"), str):
            report.tasks[columns["task"]] += 1
        if "task" not in mistyped:
            yield from _scorable(columns, self.rewards_columns or (), self.judge)

    def _media(self, row: Row, report: Report, failed: list[RowError]) -> Iterator[Opened]:
        """Images that open, and in `failed` why media do not."""
        for item in row.images:
            try:
                yield open_image_item(item, row.access(self.access, "image"), self.sizing)
                report.media["images"] += 1
            except RowError as error:
                failed.append(RowError(row.names.get("image", error.column), error.message, error.fix))
        for item in row.videos:
            try:
                self._watch(open_video_item(item, row.access(self.access, "video")))
                report.media["videos"] += 1
            except RowError as error:
                failed.append(RowError(row.names.get("video", error.column), error.message, error.fix))

    def _watch(self, clip: Clip | FrameList) -> None:
        """Decode two frames of a clip, once however many rows show it and whatever each asks of it."""
        clip = replace(clip, asks=OwnSampling())
        if clip not in self.clips:
            try:
                read_clip(clip, _PROBE)
                self.clips[clip] = ""
            except DataError as error:
                self.clips[clip] = str(error)
        if self.clips[clip]:
            raise RowError("video", self.clips[clip])


def _as_row_error(error: DataError, column: str) -> RowError:
    return error if isinstance(error, RowError) else RowError(column, str(error))


def _shown(part: Mapping[str, Any]) -> str:
    if part["type"] == "text":
        return part["text"]
    return f"<{part['type']}{' as ' + part['role'] if 'role' in part else ''}>"


def preview(prompt: Prompt) -> str:
    """The prompt as a few lines of text, media as <image> and <video>."""
    lines = [f"row {prompt.id}:"]
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(map(_shown, content))
        lines.append(f"  {message['role']}: {content}")
    return "\n".join([*lines, *(f"  {name}: {describe(value)}" for name, value in prompt.columns.items())])
