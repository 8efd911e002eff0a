"""What a data format is: how its rows are recognised, and how they become rows with our column names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl.data.sources import RowError

Raw = Mapping[str, Any]
Sizes = Callable[[dict[str, Any]], list[tuple[int, int]]]
_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """One way of writing rows.

    name       as it is printed, recorded and set: `data.format=NAME`
    title      what people call it
    recognise  whether a row is certainly of this format
    names      our columns to its columns; taken where a row has them and does not have ours
    adapt      what else must be done: gets the row under our names, gives it back changed
    defaults   columns a row gets where it has none of its own, such as `task`
    uses       columns that `adapt` reads, and those known to be for nobody: never an unread column
    folders    where its media paths may start from besides the data set's folder: {"image": "images"}
    admits     whether a row that shows nothing may be of this format, when other rows of the data set are
    known_by   columns that rows of it have: a row whose nulls keep it from showing its format has it by their names
    truth      column that `adapt` takes the solution from: named where it holds none
    measure    what is done before `adapt` and needs the sizes of the row's images: gets the row and how to look at them
    """

    name: str
    title: str
    recognise: Callable[[Raw], bool]
    names: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    uses: frozenset[str] = frozenset()
    folders: Mapping[str, str] = field(default_factory=dict)
    admits: Callable[[Raw], bool] | None = None
    known_by: tuple[str, ...] = ()
    truth: str | None = None
    measure: Callable[[dict[str, Any], Sizes], dict[str, Any]] | None = None

    def read(self, raw: Raw, sizes: Sizes | None = None) -> dict[str, Any]:
        """The row under our column names. Raises RowError.

        sizes  [(width, height)] of the images of such a row; None: they cannot be looked at
        """
        values = dict(raw)
        for ours, theirs in self.names.items():
            if values.get(ours) is None and theirs in values:
                values[ours] = values.pop(theirs)
        if self.measure is not None:
            values = self.measure(values, sizes or _nowhere)
        if self.adapt is not None:
            values = self.adapt(values)
        for name, value in self.defaults.items():
            if values.get(name) is None:
                values[name] = value
        return values


def _nowhere(values: dict[str, Any]) -> list[tuple[int, int]]:
    raise RowError("image", "must be looked at to read this row", "open the rows as a data set")


def has(raw: Raw, *names: str) -> bool:
    """Whether the row has all these columns, and none of them is null."""
    return all(raw.get(name) is not None for name in names)


def untagged(solution: Any) -> Any:
    """A truth without the `<answer>` tags some data sets store it in."""
    match = _ANSWER.fullmatch(solution) if isinstance(solution, str) else None
    return match[1].strip() if match else solution


def is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, of either spelling."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and any(pair <= value.keys() for pair in ({"role", "content"}, {"from", "value"}))


def messages_in(value: Any) -> list[Any] | None:
    """The chat messages that a string holds as JSON; None if it holds none."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", "[ {", "[\n")):
        return None
    try:
        parsed = json.loads(value)
    except ValueError:
        return None
    return parsed if is_messages(parsed) else None


def place_by_type(values: dict[str, Any], column: str) -> dict[str, Any]:
    """The medium of `column` as `image` or `video`, as `data_type` says."""
    kind = values.get("data_type")
    if values.get(column) is None:
        if kind in ("image", "video"):
            raise RowError(column, f"is null, and data_type says that the row has {kind}s")
        return values
    if kind not in ("image", "video"):
        raise RowError("data_type", f"expected image or video, since the row has a {column!r}, got {kind!r}")
    return {**{k: v for k, v in values.items() if k != column}, kind: values[column]}


def check_type(values: dict[str, Any]) -> None:
    """`data_type` and the media of a row must agree. Raises RowError."""
    kind = values.get("data_type")
    given = [k for k in ("image", "video") if values.get(k) or values.get(f"{k}s")]
    if kind in ("image", "video") and kind not in given:
        raise RowError("data_type", f"is {kind!r}, but the row has {f'{given[0]}s' if given else 'no media'}")


PROBLEM_TYPES = {
    "multiple choice": "choice",
    "multiple choice qa": "choice",
    "numerical": "numeric",
    "number": "numeric",
    "regression": "regression",
    "math": "math",
    "mathematics": "math",
    "boolean": "boolean",
    "binary classification": "boolean",
    "temporal grounding": "temporal",
    "spatial grounding": "box",
}
"""`problem_type` of Video-R1 and EasyVideoR1 to the tasks of the reward `accuracy`."""


def task_of(problem_type: Any) -> str:
    """The task of a problem type; one that no task judges keeps its name, which `accuracy` then refuses by name."""
    text = " ".join(str(problem_type).lower().replace("-", " ").replace("_", " ").split())
    return PROBLEM_TYPES.get(text, text.replace(" ", "_"))
