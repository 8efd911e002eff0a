"""One row to one prompt: chat messages, media in their places, and the columns rewards read.

Every function raises RowError naming the column, what stood there, and the right form. What rows may look
like is shown in docs/data.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmrl.data.formats import Recogniser
from mmrl.data.formats.base import Format, task_of, untagged
from mmrl.data.images import MediaAccess, Sizing, describe, media_identity
from mmrl.data.items import (
    CONDITION,
    KINDS,
    Opened,
    are_frames,
    look_at_image_item,
    of_column,
    open_image_item,
    open_video_item,
    read_item,
    within_folder,
)
from mmrl.data.messages import (
    Messages,
    add_text,
    fields_of,
    place_media,
    present,
    read_messages,
    take_answer,
    text_of,
)
from mmrl.data.options import are_shown, option_lines, read_options
from mmrl.data.sources import WHOLE_ROW, RowError
from mmrl.data.unread import kind_of, unasked, unread
from mmrl.errors import unknown
from mmrl.record import Prompt

RIGHT_FORM = (
    '{"prompt": "How many cats?", "image": "photos/1.jpg", "solution": "2", "task": "count"}'
    "   (prompt may be chat messages; images, video, videos and any other column are welcome)"
)
READ = frozenset({"solution", "task", "options", "image_size", "resized_size"})
AS_WRITTEN = ("mmrl", "trl")  # formats whose solutions keep their tags
_NEAR = {
    "prompt": (
        "question",
        "problem",
        "query",
        "instruction",
        "text",
        "caption",
        "messages",
        "conversations",
        "message",
    ),
    "solution": ("answer", "label", "ground_truth", "gt", "target", "response", "output", "completion"),
    "task": ("problem_type", "question_type", "task_type", "type"),
}
_TRUTHS = ("answer", "ground_truth", "gt_answer", "gt")  # columns beside messages that say what is right
_HALF = re.compile("[\ud800-\udfff]")


@dataclass
class Row:
    """A row understood, its media not opened yet.

    id        as the row says, or the hash of what it holds
    messages  as the model sees them, before system prompt and template
    columns   what rewards read, under our names
    raw       the row as it is stored; templates read it
    names     our columns to the row's, where they differ
    content   hash of prompt, media, options and solution: equal for repeated rows
    """

    id: str
    messages: Messages
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    format: Format | None = None
    content: str = ""

    def access(self, access: MediaAccess, kind: str) -> MediaAccess:
        """`access` with the folder where the row's format keeps media of this kind."""
        return within_folder(access, self.format.folders.get(kind) if self.format else None)


@dataclass(frozen=True)
class RowReader:
    """How the rows of a data set are read.

    columns   our names to theirs: {"prompt": "question", "solution": "answer"}
    formats   which format each row has
    system, template  put around every row
    task      of rows that name none
    ignore    columns that are left out
    elsewhere columns that somebody else reads, such as rewards
    access    where media lie, for formats whose rows can only be read by the size of their images
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    formats: Recogniser = field(default_factory=Recogniser)
    system: str | None = None
    template: str | None = None
    task: str | None = None
    ignore: Collection[str] = ()
    elsewhere: Collection[str] = ()
    access: MediaAccess | None = None

    def row(self, raw: Mapping[str, Any]) -> Row:
        """As `parse`, and without columns that look like part of the prompt and are not. Raises RowError."""
        row = self.parse(raw)
        for problem in self.unread(row):
            raise problem
        return row

    def parse(self, raw: Mapping[str, Any]) -> Row:
        """Raises RowError under the row's own column names."""
        _refuse_half_characters(raw)
        kept = {k: v for k, v in raw.items() if k not in self.ignore}
        shown = self.formats.of(kept)
        names = _names(shown, raw) | dict(self.columns)
        try:
            row = self._read(self._values(kept, shown), shown)
        except RowError as error:
            raise _renamed(error, names) from None
        row.raw, row.names, row.format = raw, names, shown
        return row

    def _values(self, raw: Mapping[str, Any], shown: Format) -> dict[str, Any]:
        """The row under our column names."""
        values = shown.read(raw, None if self.access is None else partial(self._sizes, self.access, shown))
        for ours, theirs in self.columns.items():
            if theirs not in raw:
                raise RowError(theirs, f"the row has no such column ({unknown('column', theirs, raw)})")
            if theirs not in shown.uses:  # else the format has read it as it should be read
                values.pop(theirs, None)
                values[ours] = raw[theirs]
        if shown.name not in AS_WRITTEN and values.get("solution") is not None:
            values["solution"] = untagged(values["solution"])
        if self.task is not None and values.get("task") in (None, shown.defaults.get("task")) and not raw.get("task"):
            values["task"] = self.task
        if values.get("task") is None and isinstance(values.get("problem_type"), str):
            values["task"] = task_of(values["problem_type"])
        return values

    @staticmethod
    def _sizes(access: MediaAccess, shown: Format, values: dict[str, Any]) -> list[tuple[int, int]]:
        """(width, height) of the images of a row under our column names."""
        items, _ = take_media(dict(values), "image", read_messages(values.get("prompt"))[1]["image"])
        access = within_folder(access, shown.folders.get("image"))
        return [look_at_image_item(item, access).size for item in items]

    def unread(self, row: Row) -> Iterator[RowError]:
        """Columns that look like part of the prompt, and are not."""
        known = {*READ, *self.elsewhere, *self.columns.values(), *fields_of(self.template)}
        known |= row.format.uses if row.format else frozenset()
        yield from unread(row.columns, known)
        yield from unasked(row.columns, known, bool(row.images), bool(row.videos))

    def _read(self, values: dict[str, Any], shown: Format) -> Row:
        messages, found = read_messages(_take_prompt(values))
        messages, answer = take_answer(messages)
        if answer is not None:
            _keep_answer(values, answer, self.elsewhere)
        options = read_options(values.get("options"))
        if options is not None:
            values["options"] = options
        items, conditions = {}, {}
        for kind in KINDS:
            items[kind], conditions[kind] = take_media(values, kind, found[kind])
        content = _content(messages, items, values.get("solution"), options)
        name = values.pop("id", None)
        if options and "options" not in fields_of(self.template) and not are_shown(options, text_of(messages)):
            messages = add_text(messages, option_lines(options))
        placed = place_media(messages, {kind: len(items[kind]) for kind in KINDS}, conditions)
        return Row(
            str(content if name is None else name), placed, items["image"], items["video"], values, content=content
        )

    def presented(self, row: Row) -> Messages:
        """The messages of a row under system prompt and template."""
        fields = {**row.raw, **row.columns} if self.template else {}
        return present(row.messages, self.system, self.template, fields)

    def prompt(self, row: Row, access: MediaAccess, sizing: Sizing | None = None) -> Prompt:
        """The prompt, with images opened and clips located."""
        messages = self.presented(row)
        images = [open_image_item(item, row.access(access, "image"), sizing) for item in row.images]
        videos = [open_video_item(item, row.access(access, "video")) for item in row.videos]
        columns = with_sizes(row.columns, images, sizing)
        return Prompt(row.id, messages, [opened.image for opened in images], videos, columns)

    def columns_unopened(self, row: Row, access: MediaAccess, sizing: Sizing | None = None) -> dict[str, Any]:
        """The columns of the prompt; images are looked at, not decoded."""
        look = partial(look_at_image_item, access=row.access(access, "image"), sizing=sizing)
        return with_sizes(row.columns, [look(item) for item in row.images], sizing)


def with_sizes(columns: Mapping[str, Any], images: Sequence[Opened], sizing: Sizing | None) -> dict[str, Any]:
    """The columns with `image_size` and, where it is known how the model sizes images, `resized_size`: [width, height].

    One size where all images have it; otherwise one for each, which no box can be measured in. A row's own stay.
    """
    sizes = {"image_size": [opened.size for opened in images]}
    if sizing is not None:
        sizes["resized_size"] = [sizing.within(opened.given) for opened in images]
    filled = dict(columns)
    for name, many in sizes.items():
        if many and filled.get(name) is None:
            filled[name] = list(many[0]) if len(set(many)) == 1 else [list(size) for size in many]
    return filled


def parse_row(raw: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Row:
    """One row on its own, its format recognised."""
    return RowReader(columns or {}).row(raw)


def missing(column: str, raw: Collection[str], state: str = "missing") -> RowError:
    """What to say of a row without `column`: the setting that points to the column it may stand in."""
    near = [n for n in _NEAR.get(column, ()) if n in raw]
    if column == "prompt":
        point = f"name yours: {' '.join(_pointers(near[0], raw))}" if near else ""
        if state == "null":
            return RowError("prompt", "is null", point or "write the question, or leave the row out")
        said = f"missing; the row has {', '.join(raw) or 'no columns'}"
        return RowError("prompt", said, point or f"a row reads {RIGHT_FORM}")
    point = f"data.columns.{column}={near[0] if near else 'YOURS'} names the column that has it"
    fixes = {"solution": "give the right answer", "task": "data.task=choice names one task for all rows"}
    return RowError(column, f"is {state}, and a reward reads it", f"{fixes.get(column, 'fill it in')}, or {point}")


def _pointers(prompt: str, raw: Collection[str]) -> Iterator[str]:
    """The settings that make a row of this one: its question, and what else of it stands under names of its own."""
    yield f"data.columns.prompt={prompt}"
    if "solution" not in raw and (near := next((n for n in _NEAR["solution"] if n in raw), None)):
        yield f"data.columns.solution={near}"
    if isinstance(raw, Mapping):
        media = ((kind_of(value), name) for name, value in raw.items())
        yield from (f"data.columns.{k}={n}" for k, n in media if k in KINDS and n not in (k, f"{k}s"))


def _take_prompt(values: dict[str, Any]) -> Any:
    if values.get("prompt") is None:
        raise missing("prompt", values, "null" if "prompt" in values else "missing")
    return values.pop("prompt")


def _keep_answer(values: dict[str, Any], answer: Any, elsewhere: Collection[str]) -> None:
    """A last answer of the assistant is the truth; one beside another truth must say the same.

    elsewhere  columns that rewards read for themselves, whatever they are called
    """
    told = f"the messages end with the answer {str(answer)[:40]!r}"
    if values.get("solution") is None:
        for name in _TRUTHS:
            if name in values and name not in elsewhere and not _agree(values[name], answer):
                fix = f"data.ignore=[{name}] takes the messages' answer"
                raise RowError(name, f"holds {str(values[name])[:40]!r}, but {told}", fix)
        values["solution"] = untagged(answer)
    elif not _agree(values["solution"], answer):
        raise RowError("prompt", f"{told}, but the row has a solution of its own", "keep one of the two")


def _agree(truth: Any, answer: Any) -> bool:
    """Whether a truth is what an answer says, all of it or in its last `<answer>` tag. A null says nothing."""
    if truth is None:
        return True
    tagged = re.findall(r"<answer>(.*?)</answer>", str(answer), re.DOTALL | re.IGNORECASE)[-1:]
    return str(untagged(truth)).strip() in {str(each).strip() for each in (answer, untagged(answer), *tagged)}


def _content(messages: Messages, items: Mapping[str, list[Any]], solution: Any, options: list[str] | None) -> str:
    identity: list[Any] = [messages]
    for kind in KINDS:
        with of_column(kind):
            identity.append([media_identity(item) for item in items[kind]])
    identity.append(solution)
    if options is not None:
        identity.append(options)
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _names(shown: Format, raw: Mapping[str, Any]) -> dict[str, str]:
    """Our columns to those the row has them under, where they differ."""
    theirs = dict(shown.names) if shown.truth is None else {"solution": shown.truth, **shown.names}
    return {o: t for o, t in theirs.items() if raw.get(o) is None and t.partition(".")[0] in raw}


def _renamed(error: RowError, names: Mapping[str, str]) -> RowError:
    """The same error under the name the column has in the row."""
    return RowError(names.get(error.column, error.column), error.message, error.fix)


def _refuse_half_characters(raw: Mapping[str, Any]) -> None:
    """A lone surrogate is no character: tokenizers and files refuse it."""
    for name, value in raw.items():
        half = _half_character(value)
        if half or _HALF.search(str(name)):
            shown = half or str(name)
            at = _HALF.search(shown)
            around = shown[max(0, at.start() - 20) : at.end() + 20] if at else shown
            fix = "write the whole character, or remove it"
            raise RowError(
                ascii(name)[1:-1] or WHOLE_ROW, f"holds half a character (a lone surrogate): {around!r}", fix
            )


def _half_character(value: Any) -> str | None:
    """The first text in a value that holds a lone surrogate."""
    if isinstance(value, str):
        return value if not value.isascii() and _HALF.search(value) else None
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((half for each in value if (half := _half_character(each))), None)
    return None


def take_media(values: dict[str, Any], kind: str, found: list[Any]) -> tuple[list[Any], int]:
    """Media of one kind, conditions of a generator first, and how many of those there are.

    From `image` or `images` (`condition_image`, ...), or else from the message parts.
    """
    conditions = _take(values, f"condition_{kind}", kind) or []
    given = _take(values, kind, kind)
    if given is None:
        given = [(item, None) for item in found]
    elif found:
        raise RowError(kind, f"the messages carry {len(found)} {kind}(s) of their own", "keep one of the two")
    asked = [item for item, role in given if role == CONDITION]
    plain = [item for item, role in given if role != CONDITION]
    first = [item for item, _ in conditions] + asked
    return first + plain, len(first)


def _take(values: dict[str, Any], name: str, kind: str) -> list[tuple[Any, str | None]] | None:
    """Items and roles of the column `name` or its plural; None where neither holds anything."""
    one, many = values.pop(name, None), values.pop(name + "s", None)
    one = None if isinstance(one, list | tuple | str) and not one else one
    many = None if isinstance(many, list | tuple | str) and not many else many
    if one is not None and many is not None:
        raise RowError(kind, f"both {name!r} and '{name}s' are given", "keep one of them")
    given = one if one is not None else many
    if given is None:
        return None
    if not isinstance(given, list | tuple):
        return [read_item(kind, given)]
    if kind == "video" and one is not None and are_frames(given):
        return [(list(given), None)]
    if any(each is None or each == "" for each in given):
        raise RowError(name, f"holds an empty entry: {describe(given)}")
    return [read_item(kind, each) for each in given]
