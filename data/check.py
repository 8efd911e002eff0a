"""`mmrl check`: read every row as training will, and say what is wrong with it and what it should be.

No problem stops the scan: each is counted, the first are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.data.datasets import WORLD, media_access, open_world_spec
from mmrl.data.images import MediaAccess, describe
from mmrl.data.rows import (
    RIGHT_FORM,
    Row,
    open_row_image,
    open_row_video,
    parse_row,
    present,
    rename,
    take_verl_solution,
)
from mmrl.data.sources import WHOLE_ROW, RowError, Rows, open_rows
from mmrl.data.video import read_clip
from mmrl.errors import DataError
from mmrl.media import Clip, FrameList, VideoSampling
from mmrl.record import Prompt

Judge = Callable[[Mapping[str, Any]], Iterable[RowError]]

SHOWN = 20
KEPT = 1000
_PROBE = VideoSampling(fps=None, min_frames=2, max_frames=2, min_pixels=28 * 28, max_pixels=64 * 28 * 28)
_NAMES = ("id", "task")
_NAMED = {WHOLE_ROW: "the whole row"}


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


@dataclass
class Report:
    """What a scan found.

    problems  the first 1,000, in row order; `total` counts them all
    counts    problems by column
    tasks     rows by `task`
    media     images and videos that open
    preview   the first good row, as the policy will see it
    """

    source: str
    rows: int = 0
    bad_rows: int = 0
    total: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    preview: str = ""

    def add(self, problem: Problem) -> None:
        self.total += 1
        self.counts[problem.column] += 1
        if len(self.problems) < KEPT:
            self.problems.append(problem)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.rows} rows, {self.media['images']} images, {self.media['videos']} videos"]
        if self.tasks:
            lines.append("tasks: " + ", ".join(f"{task} {n}" for task, n in self.tasks.most_common()))
        if self.total:
            by_column = ", ".join(f"{_NAMED.get(c, c)} {n}" for c, n in self.counts.most_common())
            lines.append(f"{self.total} problems in {self.bad_rows} rows (by column: {by_column})")
            lines += [f"  {problem}" for problem in self.problems[:SHOWN]]
            if self.total > SHOWN:
                lines.append(f"  ... and {self.total - SHOWN} more")
            lines.append(f"a row reads: {RIGHT_FORM}")
        else:
            lines.append("no problems")
        return "\n".join([*lines, self.preview] if self.preview else lines)


def check_dataset(
    spec: str | Path | Any,
    rewards_columns: Sequence[str] | None = None,
    judge: Judge | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    media_root: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    limit: int | None = None,
    system: str | None = None,
    template: str | None = None,
) -> Report:
    """Scan a data set; the options are those of `open_dataset`.

    rewards_columns  columns the rewards read: every row must have them, and not null or blank; None: `solution`,
                     if any row has one or names a `task`
    judge            from the columns of a row to what keeps rewards from scoring it

    Raises DataError only where there are no rows to scan.
    """
    if isinstance(spec, str) and spec.startswith(WORLD):
        return _check_world(spec, limit, rewards_columns or (), judge or _no_judge)
    rows = open_rows(spec)
    access = media_access(rows, media_root, allow_outside, allow_urls)
    scan = _Scan(rows, access, columns or {}, rewards_columns, judge or _no_judge, system, template)
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
        state = "missing" if name not in columns else "null" if columns[name] is None else "blank"
        yield RowError(name, f"is {state}, and a reward reads it", "give the right answer")
    yield from (error for error in judge(columns) if error.column not in lacking)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


@dataclass
class _Scan:
    rows: Rows
    access: MediaAccess
    columns: Mapping[str, str]
    rewards_columns: Sequence[str] | None
    judge: Judge
    system: str | None
    template: str | None
    seen: dict[str, int] = field(default_factory=dict)
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
        return report

    def _answered(self, index: int) -> bool:
        """Whether a row is of the kind that has one right answer; a caption for a generator is not."""
        try:
            values = rename(self.rows[index], self.columns)
        except RowError:  # told when its turn comes
            return False
        take_verl_solution(values)
        return any(values.get(name) is not None for name in ("solution", "task"))

    def _row(self, index: int, report: Report) -> Iterator[RowError]:
        try:
            values = rename(self.rows[index], self.columns)
        except RowError as error:
            yield error
            return
        yield from self._values(values, report)
        try:
            row = parse_row(values)
            messages = present(row.messages, self.system, self.template)
        except DataError as error:
            yield _as_row_error(error, "prompt")
            return
        if row.id in self.seen:
            again = self.rows.where(self.seen[row.id])
            yield RowError("id", f"{row.id!r} again, first at {again}", "without an `id` column the row is repeated")
        self.seen.setdefault(row.id, index)
        media = list(self._media(row, report))
        yield from media
        if not media and not report.preview:
            report.preview = preview(Prompt(row.id, messages, row.images, row.videos, row.columns))

    def _values(self, values: dict[str, Any], report: Report) -> Iterator[RowError]:
        values = dict(values)
        take_verl_solution(values)
        mistyped = [n for n in _NAMES if values.get(n) is not None and not isinstance(values[n], str | int)]
        for name in mistyped:
            yield RowError(name, f"expected text, got {describe(values[name])}")
        if isinstance(values.get("task"), str):
            report.tasks[values["task"]] += 1
        if "task" not in mistyped:
            yield from _scorable(values, self.rewards_columns or (), self.judge)

    def _media(self, row: Row, report: Report) -> Iterator[RowError]:
        for value in row.images:
            try:
                open_row_image(value, self.access)
                report.media["images"] += 1
            except RowError as error:
                yield error
        for value in row.videos:
            try:
                self._watch(open_row_video(value, self.access))
                report.media["videos"] += 1
            except RowError as error:
                yield error

    def _watch(self, clip: Clip | FrameList) -> None:
        """Decode two frames of a clip, once however many rows show it."""
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


def preview(prompt: Prompt) -> str:
    """The prompt as a few lines of text, media as <image> and <video>."""
    lines = [f"row {prompt.id}:"]
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(p["text"] if p["type"] == "text" else f"<{p['type']}>" for p in content)
        lines.append(f"  {message['role']}: {content}")
    return "\n".join([*lines, *(f"  {name}: {describe(value)}" for name, value in prompt.columns.items())])
