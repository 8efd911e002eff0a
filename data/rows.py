"""One row to one prompt: chat messages, media in their places, and the columns rewards read.

Every function raises RowError naming the column, what stood there, and the right form. What rows may look
like is shown in docs/data.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.data.cache import default_root
from mmrl.data.images import (
    MediaAccess,
    describe,
    is_url,
    media_bytes,
    media_identity,
    media_place,
    open_media_image,
)
from mmrl.data.sources import RowError
from mmrl.errors import ConfigError, DataError, unknown
from mmrl.media import Clip, FrameList
from mmrl.record import Prompt

RIGHT_FORM = (
    '{"prompt": "How many cats?", "image": "photos/1.jpg", "solution": "2", "task": "count"}'
    "   (prompt may be chat messages; images, video, videos and any other column are welcome)"
)
ROLES = ("system", "developer", "user", "assistant", "tool")
KINDS = ("image", "video")
IMAGE_ROLES = ("condition",)
"""What an image is to a generator: it edits it, or animates it."""
_TAGS = re.compile(r"(<image>|<video>)")
_PROMPT_NAMES = ("question", "problem", "query", "instruction", "text", "messages", "conversations")
_STILL = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class Row:
    """A row understood, its media not opened yet."""

    id: str
    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


def parse_row(raw: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Row:
    """`columns` maps our names to theirs: {"prompt": "question", "solution": "answer"}."""
    values = rename(raw, columns or {})
    messages, found = read_messages(_take_prompt(values))
    media = {kind: take_media(values, kind, found[kind]) for kind in KINDS}
    identity = [messages, *([media_identity(v) for v in media[kind]] for kind in KINDS)]
    take_verl_solution(values)
    name = values.pop("id", None)
    if name is None:
        text = json.dumps([*identity, values.get("solution")], sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
    placed = place_media(messages, {kind: len(media[kind]) for kind in KINDS})
    return Row(str(name), placed, media["image"], media["video"], values)


def rename(raw: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our names; the originals of renamed columns are gone."""
    values = dict(raw)
    taken = {}
    for ours, theirs in columns.items():
        if theirs not in values:
            raise RowError(theirs, f"the row has no such column ({unknown('column', theirs, values)})")
        taken[ours] = values.pop(theirs)
    return values | taken


def _take_prompt(values: dict[str, Any]) -> Any:
    if values.get("prompt") is None:
        near = [n for n in _PROMPT_NAMES if n in values]
        fix = f'name yours: columns={{"prompt": "{near[0]}"}}' if near else f"a row reads {RIGHT_FORM}"
        raise RowError("prompt", f"missing; the row has {', '.join(values) or 'no columns'}", fix)
    return values.pop("prompt")


def take_verl_solution(values: dict[str, Any]) -> None:
    """verl keeps the truth in `reward_model.ground_truth`: it becomes `solution` where a row has none."""
    nested = values.get("reward_model")
    if values.get("solution") is None and isinstance(nested, Mapping) and nested.get("ground_truth") is not None:
        values["solution"] = nested["ground_truth"]


# ---- messages ----------------------------------------------------------------------------------------------


def read_messages(prompt: Any) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Chat messages with contents as lists of parts, and the media their parts carried.

    A string is one user message. Parts become `{"type": "text", "text"}`, `{"type": "image"}`,
    `{"type": "video"}`, an image with its `role` where it has one; `<image>` and `<video>` in user text mark
    places too.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise RowError("prompt", f"expected a string or chat messages, got {describe(prompt)}")
    messages = [_read_message(m, found) for m in prompt]
    if messages[-1]["role"] not in ("user", "tool"):
        role = messages[-1]["role"]
        raise RowError(
            "prompt", f"the last message is by {role!r}", "it must end with the user's; answers go in `solution`"
        )
    return messages, found


def _read_message(message: Any, found: dict[str, list[Any]]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise RowError("prompt", f"expected a message {{'role', 'content'}}, got {describe(message)}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise RowError("prompt", unknown("role", role, ROLES))
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RowError("prompt", f"expected a content of text or parts, got {describe(content)}")
    parts: list[dict[str, Any]] = []
    for part in content:
        parts += _read_part(part, found, split_tags=role == "user")
    return {"role": role, "content": parts}


def _read_part(part: Any, found: dict[str, list[Any]], split_tags: bool) -> list[dict[str, Any]]:
    if not isinstance(part, Mapping):
        raise RowError("prompt", f"expected a content part {{'type', ...}}, got {describe(part)}")
    part = {k: v for k, v in part.items() if v is not None}  # columnar files fill absent keys with null
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        pieces = _TAGS.split(part["text"]) if split_tags else [part["text"]]
        return [{"type": p[1:-1]} if _TAGS.fullmatch(p) else {"type": "text", "text": p} for p in pieces if p]
    if kind in ("image", "image_url"):
        value = part.get("image", part.get("image_url", part.get("path", part.get("url"))))
        value = value["url"] if isinstance(value, Mapping) and "url" in value else value
        found["image"] += [] if value is None else [value]
        if "role" in part and part["role"] not in IMAGE_ROLES:
            raise RowError("prompt", unknown("role of an image part", part["role"], IMAGE_ROLES))
        return [{"type": "image", **{k: part[k] for k in ("role",) if k in part}}]
    if kind == "video":
        value = part.get("video", part.get("path"))
        if value is not None:
            bounds = {k: part[f"video_{k}"] for k in ("start", "end") if f"video_{k}" in part}
            found["video"].append({"path": value, **bounds} if bounds else value)
        return [{"type": "video"}]
    raise RowError("prompt", f"expected a part of type text, image or video, got {describe(dict(part))}")


def take_media(values: dict[str, Any], kind: str, found: list[Any]) -> list[Any]:
    """Media of one kind from `image` or `images` (`video`, `videos`), or else from the message parts."""
    one, many = values.pop(kind, None), values.pop(kind + "s", None)
    one = None if isinstance(one, list | tuple) and not one else one
    many = None if isinstance(many, list | tuple) and not many else many
    if one is not None and many is not None:
        raise RowError(kind, f"both {kind!r} and '{kind}s' are given", "keep one of them")
    given = one if one is not None else many
    if given is None:
        return found
    if found:
        raise RowError(kind, f"the messages carry {len(found)} {kind}(s) of their own", "keep one of the two")
    if not isinstance(given, list | tuple):
        return [given]
    frames = (
        kind == "video" and one is not None and all(isinstance(v, str) and v.lower().endswith(_STILL) for v in given)
    )
    return [list(given)] if frames else list(given)


def place_media(messages: list[dict[str, Any]], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Media without a marked place go before the text of the last user message, images first.

    Contents that hold text only become strings again.
    """
    leading = []
    for kind in KINDS:
        marked = sum(p["type"] == kind for m in messages for p in m["content"])
        if marked == 0:
            leading += [{"type": kind}] * counts[kind]
        elif marked != counts[kind]:
            raise RowError(
                "prompt",
                f"{marked} {kind} place(s) in the messages, but {counts[kind]} {kind}(s) in the row",
                f"mark each with <{kind}>, or none of them",
            )
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if leading and not users:
        raise RowError("prompt", "has media but no user message to put them in")
    placed = []
    for i, message in enumerate(messages):
        content = leading + message["content"] if leading and i == users[-1] else message["content"]
        if i == len(messages) - 1 and not any(p["type"] != "text" or p["text"].strip() for p in content):
            raise RowError("prompt", "is empty")
        if all(p["type"] == "text" for p in content):
            content = "".join(p["text"] for p in content)
        placed.append({"role": message["role"], "content": content})
    return placed


def present(messages: list[dict[str, Any]], system: str | None, template: str | None) -> list[dict[str, Any]]:
    """Messages under a system prompt and with `template` ("{prompt}\\nAnswer in ...") around the user's last."""
    messages = list(messages)
    if template is not None:
        if template.count("{prompt}") != 1:
            raise ConfigError(f"template must hold {{prompt}} exactly once, got {template!r}")
        before, after = template.split("{prompt}")
        last = max(i for i, m in enumerate(messages) if m["role"] in ("user", "tool"))
        content = messages[last]["content"]
        if isinstance(content, str):
            content = before + content + after
        else:
            content = _join_texts([_text(before), *content, _text(after)])
        messages[last] = {**messages[last], "content": content}
    if system is not None:
        if messages[0]["role"] in ("system", "developer"):
            raise DataError("a system prompt is configured, but the row has one of its own; keep one of the two")
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _join_texts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring text parts become one; empty ones go."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] != "text":
            joined.append(part)
        elif joined and joined[-1]["type"] == "text":
            joined[-1] = _text(joined[-1]["text"] + part["text"])
        elif part["text"]:
            joined.append(part)
    return joined


# ---- media -------------------------------------------------------------------------------------------------


def open_row_image(value: Any, access: MediaAccess) -> Any:
    """RGB image of one value of `image` or `images`."""
    try:
        return open_media_image(value, access)
    except RowError:
        raise
    except DataError as error:
        raise RowError("image", str(error)) from None


def open_row_video(value: Any, access: MediaAccess) -> Clip | FrameList:
    """Clip of one value of `video` or `videos`: a path, {"path", "start", "end"}, bytes, or frame images."""
    try:
        return _open_video(value, access)
    except RowError:
        raise
    except DataError as error:
        raise RowError("video", str(error)) from None


def _open_video(value: Any, access: MediaAccess) -> Clip | FrameList:
    if isinstance(value, Clip | FrameList):
        return value
    if isinstance(value, list | tuple):
        return FrameList(tuple(access.resolve(media_place(v)) for v in value))
    if isinstance(value, Mapping) and value.get("frames"):
        frames = tuple(access.resolve(media_place(v)) for v in value["frames"])
        fps = _seconds(value, "fps")
        if fps == 0:
            raise RowError("video", "fps: expected frames per second above 0, got 0")
        return FrameList(frames, fps or FrameList.fps)
    start, end = (_seconds(value, k) if isinstance(value, Mapping) else None for k in ("start", "end"))
    if start is not None and end is not None and not start < end:
        raise RowError("video", f"start={start:g} is not before end={end:g}")
    content = media_bytes(value)
    if content is not None:
        return Clip(_spool(content), start, end)
    place = media_place(value)
    if is_url(place):
        raise RowError("video", f"{place!r} is an address", "download it: videos are read from files")
    return Clip(access.resolve(place), start, end)


def _seconds(value: Mapping[str, Any], name: str) -> float | None:
    number = value.get(name)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
        raise RowError("video", f"{name}: expected a number of at least 0, got {describe(number)}")
    return float(number)


def _spool(content: bytes) -> Path:
    """A file that holds these bytes, named by their hash: decoders read files."""
    name = hashlib.sha256(content).hexdigest()
    path = default_root() / "media" / name[:2] / f"{name}.video"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    return path


def open_row(row: Row, access: MediaAccess, system: str | None = None, template: str | None = None) -> Prompt:
    """The prompt, with images opened and clips located."""
    return Prompt(
        id=row.id,
        messages=present(row.messages, system, template),
        images=[open_row_image(v, access) for v in row.images],
        videos=[open_row_video(v, access) for v in row.videos],
        columns=dict(row.columns),
    )
