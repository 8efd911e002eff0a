"""One medium of a row: what it is, what it asks for, and opening it.

An item is a value (a path, an address, bytes, an image, a list of frames) or a mapping with the value under `path`,
`image`, `video`, `bytes` or `frames` and, beside it, what it asks for. Keys are honoured or refused, never dropped.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrl.data.cache import default_root
from mmrl.data.images import (
    LIMITS,
    MediaAccess,
    Sizing,
    describe,
    is_url,
    media_bytes,
    media_image_size,
    media_place,
    open_media_image,
)
from mmrl.data.sources import RowError
from mmrl.errors import DataError, unknown
from mmrl.media import Clip, FrameList, OwnSampling

KINDS = ("image", "video")
CONDITION = "condition"
PIXELS = ("min_pixels", "max_pixels")
_VALUES = {"image": ("image", "image_url", "path", "url"), "video": ("frames", "video", "video_url", "path", "url")}
_ASKS = {"image": PIXELS, "video": ("start", "end", "fps", *LIMITS)}
_SPELLED = {"video_start": "start", "video_end": "end", "video_fps": "fps"}
_STILL = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_STILL_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"BM")


def read_item(kind: str, value: Any) -> tuple[Any, str | None]:
    """An item in its one spelling, and its role: a bare value, or {"path" | "frames" | "bytes", what it asks for}.

    Raises RowError for a key that nothing honours.
    """
    if not isinstance(value, Mapping):
        return value, None
    given = {_SPELLED.get(k, k): v for k, v in value.items() if v is not None and k != "type"}
    role = given.pop("role", None)
    if role not in (None, CONDITION):
        raise RowError(kind, unknown("role", role, (CONDITION,)))
    if kind == "video" and "nframes" in given:
        given = _counted(given)
    held = [name for name in (*_VALUES[kind], "bytes") if name in given]
    source = _source(kind, given, held)
    asked = {name: given.pop(name) for name in _ASKS[kind] if name in given}
    if rest := [name for name in given if name not in held and name != "detail"]:
        raise RowError(kind, f"{rest[0]!r} is not honoured; known beside the {kind}: {', '.join(_ASKS[kind])}")
    _check_asked(kind, asked)
    if not asked:
        return source, role
    return {**(source if isinstance(source, Mapping) else _named(source)), **asked}, role


def _counted(given: dict[str, Any]) -> dict[str, Any]:
    """`nframes`, the count itself, as the bounds it stands for; beside a rate or bounds one would be lost."""
    count = given.pop("nframes")
    if other := next((name for name in ("fps", "min_frames", "max_frames") if name in given), None):
        raise RowError("video", f"both nframes and {other} are given", "keep one of them")
    return {**given, "min_frames": count, "max_frames": count}


def _source(kind: str, given: Mapping[str, Any], held: list[str]) -> Any:
    """The value of an item: `{"bytes", "path"}` stays, the name of a path is not its content."""
    if not held:
        raise RowError(kind, f"expected a {kind} under one of {', '.join(_VALUES[kind])}, got {describe(dict(given))}")
    if "bytes" in held:
        return {name: given[name] for name in held if name in ("bytes", "path")}
    if len(held) > 1:
        raise RowError(kind, f"both {held[0]!r} and {held[1]!r} are given", "keep one of them")
    value = given[held[0]]
    if isinstance(value, Mapping):  # {"image_url": {"url": ..., "detail": ...}}
        if value.get("detail") == "low":
            raise RowError(kind, "detail 'low' is not honoured", "write max_pixels beside the image")
        value, _ = read_item(kind, value)
    return value


def _named(source: Any) -> dict[str, Any]:
    return {"frames": source} if isinstance(source, list | tuple) else {"path": source}


def _check_asked(kind: str, asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        whole = name in LIMITS
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in ("start", "end"):
            good, right = number and value >= 0, "a number of at least 0"
        elif whole:
            good, right = number and value == int(value) and value >= 1, "a whole number of at least 1"
        else:
            good, right = number and value > 0, "frames per second above 0"
        if not good:
            raise RowError(kind, f"{name}: expected {right}, got {describe(value)}")
    for low, high in (("start", "end"), ("min_frames", "max_frames"), PIXELS):
        if low in asked and high in asked:
            first, last = asked[low], asked[high]
            if first > last or (low == "start" and first == last):
                raise RowError(kind, f"{low}={first:g} is not before {high}={last:g}")


def are_frames(values: Any) -> bool:
    """Whether a list holds the frames of one video, not several videos."""
    return bool(values) and all(map(_is_still, values))


def _is_still(value: Any) -> bool:
    """An image by its path's ending or its first bytes; a mapping by what it holds."""
    if isinstance(value, Mapping):
        held = [value[name] for name in ("bytes", "path", "image") if value.get(name) is not None]
        return bool(held) and set(value) <= {"bytes", "path", "image", "type"} and _is_still(held[0])
    if isinstance(value, bytes):
        return value.startswith(_STILL_BYTES) or value[8:12] == b"WEBP"
    return isinstance(value, str) and value.lower().endswith(_STILL)


# ---- opening -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """An image of a row: its size `(width, height)` in the data set, the size it is given to the model in, which
    differs where its row bounds the area, and, unless it was only looked at, itself."""

    size: tuple[int, int]
    given: tuple[int, int]
    image: Any = None


def open_image_item(item: Any, access: MediaAccess, sizing: Sizing | None = None) -> Opened:
    """One image of a row, within the area it asks for."""
    with of_column("image"):
        image = open_media_image(item, access)
        given = _bounded(item, image.size, sizing)
        return Opened(image.size, given, image if given == image.size else image.resize(given))


def look_at_image_item(item: Any, access: MediaAccess, sizing: Sizing | None = None) -> Opened:
    """As `open_image_item`, by the header of the file alone: there is no image."""
    with of_column("image"):
        size = media_image_size(item, access)
        return Opened(size, _bounded(item, size, sizing))


def _bounded(item: Any, size: tuple[int, int], sizing: Sizing | None) -> tuple[int, int]:
    asked = {k: int(item[k]) for k in PIXELS if k in item} if isinstance(item, Mapping) else {}
    return (sizing or Sizing()).within(size, **asked) if asked else size


@contextmanager
def of_column(column: str) -> Iterator[None]:
    """Errors about media become errors of their column."""
    try:
        yield
    except RowError:
        raise
    except DataError as error:
        raise RowError(column, str(error)) from None


def open_video_item(item: Any, access: MediaAccess) -> Clip | FrameList:
    """One video of a row, located: a path, bytes, or frame images, with what it asks for."""
    with of_column("video"):
        return _open_video(item, access)


def _open_video(value: Any, access: MediaAccess) -> Clip | FrameList:
    if isinstance(value, Clip | FrameList):
        return value
    asked = {k: value[k] for k in _ASKS["video"] if k in value} if isinstance(value, Mapping) else {}
    asked = {k: int(v) if k in LIMITS else float(v) for k, v in asked.items()}
    limits = OwnSampling(**{k: asked.pop(k) for k in LIMITS if k in asked})
    frames = value["frames"] if isinstance(value, Mapping) and value.get("frames") else value
    if isinstance(frames, list | tuple):
        if cut := [k for k in ("start", "end") if k in asked]:
            raise RowError("video", f"{cut[0]} is not honoured for a clip given as frame images", "leave frames out")
        return FrameList(tuple(_located(v, access) for v in frames), **asked, asks=limits)
    if "fps" in asked:
        limits = replace(limits, fps=asked.pop("fps"))
    content = media_bytes(value)
    if content is not None:
        return Clip(_spool(content), **asked, asks=limits)
    place = media_place(value)
    if is_url(place):
        raise RowError("video", f"{place!r} is an address", "download it: videos are read from files")
    return Clip(access.resolve(place), **asked, asks=limits)


def _located(value: Any, access: MediaAccess) -> Path:
    """The file of a frame image; one given as bytes is put into a file."""
    content = media_bytes(value)
    return access.resolve(media_place(value)) if content is None else _spool(content)


def within_folder(access: MediaAccess, folder: str | None) -> MediaAccess:
    """The same access, whose relative paths may start from `folder` inside the root, too."""
    return access if folder is None else replace(access, folder=folder)


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
