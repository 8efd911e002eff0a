"""ms-swift: `messages` or `query`/`response`, media lists, `solution`, `chat_template_kwargs`, `objects` with boxes.

Source: modelscope/ms-swift, docs/source_en/Customization/Custom-dataset.md.
- A `solution` column is the truth; a trailing answer beside it is dropped, as ms-swift's GRPO does.
- Limits in `chat_template_kwargs` become limits of every image and video of the row.
- `<ref-object>` and `<bbox>` are filled in from `objects`, in order. Boxes that no `<bbox>` takes are the truth, where
  the row has no other. They are pixels of the image (`truth_format: abs_original`): those that `bbox_type` says are
  shares of it (`norm1`) or thousandths (`norm1000`) become pixels by its size, to a hundredth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.data.formats.base import Format, Raw, Sizes, has, is_messages
from mmrl.data.sources import RowError
from mmrl.errors import unknown

SIGNS = ("chat_template_kwargs", "objects", "solution", "rejected_response", "audios", "tools")
LIMITS = {
    "image": ("min_pixels", "max_pixels"),
    "video": ("fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"),
}
OBJECTS = ("ref", "bbox", "bbox_type", "image_id")
WHOLES = {"real": None, "norm1": 1.0, "norm1000": 1000.0}
"""`bbox_type` to what the whole width and height are written as; None: their pixels."""
_PLACES = re.compile(r"<ref-object>|<bbox>")


def recognise(raw: Raw) -> bool:
    if raw.get("prompt") is not None:
        return False
    frames = isinstance(raw.get("videos"), list) and any(isinstance(v, list) for v in raw["videos"])
    chat = is_messages(raw.get("messages")) and (frames or any(has(raw, name) for name in SIGNS))
    return chat or has(raw, "query", "response")


def adapt(values: dict[str, Any]) -> dict[str, Any]:
    values = dict(values)
    if values.get("prompt") is None and "query" in values:
        values["prompt"] = _from_query(values)
    if values.get("tools"):
        raise RowError("tools", "no tools are given to the model", "data.ignore=[tools] says that none are meant")
    if values.get("objects") is not None and is_messages(values.get("prompt")):
        values = _filled(values)
    last = values["prompt"][-1] if is_messages(values.get("prompt")) else {}
    if last.get("role") == "assistant" and values.get("solution") is not None:
        values["prompt"] = values["prompt"][:-1]
    return _limited(values)


def measure(values: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The boxes of `objects` in pixels."""
    objects = values.get("objects")
    kind = objects.get("bbox_type") if isinstance(objects, Mapping) else None
    if kind not in WHOLES and kind is not None:
        raise RowError("objects", unknown("bbox_type", str(kind), WHOLES))
    whole = WHOLES[kind or "real"]
    if whole is None:
        return values
    found = sizes(values)
    if not found:
        raise RowError("objects", f"bbox_type {kind!r} needs an image whose size the boxes are shares of")
    boxes = [_pixels(box, whole, found[0]) for box in objects.get("bbox") or []]
    return {**values, "objects": {**objects, "bbox": boxes, "bbox_type": "real"}}


def _pixels(box: Any, whole: float, size: tuple[int, int]) -> list[float]:
    numbers = isinstance(box, list | tuple) and all(isinstance(n, int | float) for n in box)
    if not numbers or not all(0 <= n <= whole for n in box):
        raise RowError("objects", f"expected boxes of numbers from 0 to {whole:g}, got {box!r:.80}")
    made = [round(n / whole * size[i % 2], 2) for i, n in enumerate(box)]
    return [int(n) if n == int(n) else n for n in made]


def _from_query(values: dict[str, Any]) -> list[dict[str, Any]]:
    """`system`, `history` and `query` as messages."""
    if values["query"] is None:
        raise RowError("query", "is null", "write the question, or leave the row out")
    system, history = values.pop("system", None), values.pop("history", None) or []
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": values.pop("query")}]


def _limited(values: dict[str, Any]) -> dict[str, Any]:
    limits = {k: v for k, v in (values.pop("chat_template_kwargs", None) or {}).items() if v is not None}
    known = {name for names in LIMITS.values() for name in names}
    for name in limits:
        if name not in known:
            raise RowError("chat_template_kwargs", unknown("key", name, known))
    for kind, names in LIMITS.items():
        asked = {name: limits[name] for name in names if name in limits}
        for column in (kind, f"{kind}s"):
            if asked and values.get(column):
                given = values[column]
                many = given if isinstance(given, list) else [given]
                values[column] = [{**_item(kind, value), **asked} for value in many]
    return values


def _item(kind: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for k, v in value.items() if v is not None}
    return {"frames": value} if isinstance(value, list) else {kind: value}


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """Names and boxes of `objects` in their places; what is left of the boxes becomes the truth."""
    objects = values["objects"]
    if not isinstance(objects, Mapping):
        raise RowError("objects", f"expected {{'ref': [...], 'bbox': [...]}}, got {objects!r:.80}")
    _check_objects(objects)
    boxes = list(objects.get("bbox") or [])
    last = values["prompt"][-1]
    asked = re.fullmatch(r"(\s|<bbox>)+", str(last.get("content"))) if last.get("role") == "assistant" else None
    if asked and values.get("task") is None:
        values = {**values, "task": "box" if asked[0].count("<bbox>") == 1 else "boxes"}
    left = {"<ref-object>": iter(objects.get("ref") or []), "<bbox>": iter(boxes)}
    messages = [{**m, "content": _fill(m["content"], left)} for m in values["prompt"]]
    rest = list(left["<bbox>"])
    truth = values.get("solution") is None and messages[-1]["role"] != "assistant" and rest
    if truth:
        values = {**values, "solution": rest[0] if len(rest) == 1 else rest}
        values["task"] = values.get("task") or ("box" if len(rest) == 1 else "boxes")
    return {**values, "prompt": messages}


def _check_objects(objects: Mapping[str, Any]) -> None:
    """What says of which image boxes are measured is honoured or refused. Raises RowError."""
    given = {name: value for name, value in objects.items() if value is not None}
    if rest := [name for name in given if name not in OBJECTS]:
        raise RowError("objects", unknown("key", rest[0], OBJECTS))
    if any(given.get("image_id") or ()):
        raise RowError("objects", "boxes of an image other than the first are not honoured", "put that image first")


def _fill(content: Any, left: Mapping[str, Iterator[Any]]) -> Any:
    if isinstance(content, list):
        return [{**p, "text": _fill(p["text"], left)} if isinstance(p.get("text"), str) else p for p in content]
    if not isinstance(content, str):
        return content

    def take(match: re.Match[str]) -> str:
        value = next(left[match[0]], None)
        if value is None:
            raise RowError("objects", f"has fewer entries than there are {match[0]} in the messages")
        return str(value)

    return _PLACES.sub(take, content)


FORMAT = Format(
    "swift",
    "ms-swift",
    recognise,
    names={"prompt": "messages", "solution": "response"},
    adapt=adapt,
    measure=measure,
    uses=frozenset({"objects", "chat_template_kwargs", "rejected_response"}),
    known_by=("query", "response"),
)
