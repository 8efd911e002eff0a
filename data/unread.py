"""Columns that look as if the model should see them and that nothing reads: a mistake, said with its fix.

A run on rows whose image stood in a column nobody named is a run on questions without their image.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmrl.data.formats.base import is_messages, messages_in
from mmrl.data.options import label_of, read_options
from mmrl.data.sources import RowError

SUFFIXES = {
    "image": ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "heic", "avif"],
    "video": ["mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "vob"],
    "audio": ["wav", "mp3", "flac", "ogg", "m4a", "aac", "opus"],
}
OPTIONS = ("options", "option", "choices", "candidates", "answer_choices", "answer_options", "mc_options")
_OF_OPTIONS = re.compile(r"(?:.*[_ -])?(?:option|choice|candidate|alternative|distractor)s?(?:[_ -].*)?", re.I)
_ONE_OPTION = re.compile(r"((?i:option|opt|choice|answer|candidate|distractor)s?[_ -]?)([A-Ja-j]|\d)|([A-J])")
LONGEST = 2048
_PATHS = {kind: re.compile(rf"[^\n]+\.(?:{'|'.join(ends)})(?:\?\S*)?", re.I) for kind, ends in SUFFIXES.items()}
_PLACES = ("path", "uri", "url", "image", "video", "audio", "image_url", "video_url", "file", "filename")
_MAGIC = {
    b"\x89PNG": "image", b"\xff\xd8\xff": "image", b"GIF8": "image", b"BM": "image", b"II*\x00": "image",
    b"RIFF": "audio", b"ID3": "audio", b"fLaC": "audio", b"\x1aE\xdf\xa3": "video",
}  # fmt: skip
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk0)[A-Za-z0-9+/\s]{40,}={0,2}\s*")  # PNG, JPEG, GIF, WEBP, BMP
_CALLED = {  # columns whose name says that their text is a place, whatever its ending
    "image": re.compile(r"(?:image|img|picture|photo|screenshot)s?_?(?:path|file|url|uri|bytes|b64|base64)?s?", re.I),
    "video": re.compile(r"(?:video|clip)s?_?(?:path|file|url|uri)s?|videos?", re.I),
}
_CUTS = ("start", "end", "video_start", "video_end", "clip_start", "clip_end", "start_time", "end_time")
_ASKS = ("fps", "video_fps", "nframes", "min_frames", "max_frames", "total_pixels", "min_pixels", "max_pixels")


def kind_of(value: Any, depth: int = 0) -> str | None:
    """`image`, `video` or `audio`, where a value is one, or a list of them."""
    if isinstance(value, str):
        return _kind_of_text(value)
    if isinstance(value, bytes):
        if value[4:8] == b"ftyp" or value[8:12] == b"AVI ":
            return "video"
        if value[8:12] == b"WEBP":
            return "image"
        return next((kind for start, kind in _MAGIC.items() if value.startswith(start)), None)
    if type(value).__module__.startswith("PIL."):
        return "image"
    if isinstance(value, Mapping):
        modality = value.get("modality") or value.get("type")
        if modality in SUFFIXES and any(value.get(k) for k in (*_PLACES, "bytes")):
            return modality
        if named := next((k for name in ("bytes", *_PLACES) if (k := kind_of(value.get(name), depth + 1))), None):
            return named
        value = list(value.values())
    if isinstance(value, list | tuple) and value and depth < 3:
        kinds = {kind_of(each, depth + 1) for each in value}
        return next((k for k in SUFFIXES if kinds == {k}), None)
    return None


def _kind_of_text(text: str) -> str | None:
    if text.startswith("data:"):
        return next((kind for kind in SUFFIXES if text.startswith(f"data:{kind}/")), None)
    if _BASE64.match(text[:LONGEST]):
        return "image"
    if len(text) > LONGEST:
        return None
    return next((kind for kind, path in _PATHS.items() if path.fullmatch(text.strip())), None)


def _are_options(name: str, value: Any) -> bool:
    listed = isinstance(value, list | tuple | Mapping) and len(value) > 1
    if name.lower() in OPTIONS:
        return listed or (isinstance(value, str) and _lists_options(value))
    texts = list(value) if isinstance(value, list | tuple) else []
    if listed and _OF_OPTIONS.fullmatch(name):
        return all(isinstance(t, str) for t in (value.values() if isinstance(value, Mapping) else value))
    return listed and bool(texts) and [label_of(t) if isinstance(t, str) else None for t in texts[:2]] == ["A", "B"]


def _lists_options(text: str) -> bool:
    try:
        return len(read_options(text) or ()) > 1
    except RowError:
        return False


def unread(values: Mapping[str, Any], used: Collection[str]) -> Iterator[RowError]:
    """One error for each column that looks like media, options or messages, and is not among `used`."""
    rest = {k: v for k, v in values.items() if k not in used and v is not None}
    for name, value in rest.items():
        if kind := kind_of(value) or _kind_by_name(name, value):
            yield RowError(name, f"holds {_article(kind)} that nothing reads", _fix(name, kind))
        elif _are_options(name, value):
            yield RowError(name, "holds options that nothing reads", _fix(name, "options"))
        elif is_messages(value) or messages_in(value):
            yield RowError(name, "holds messages that nothing reads", _fix(name, "prompt"))
    if len(letters := _option_columns(rest)) > 1:
        fix = f"write them as one column `options`; if not meant: data.ignore=[{','.join(letters)}]"
        yield RowError(letters[0], f"{', '.join(letters)} hold options that nothing reads", fix)


def _kind_by_name(name: str, value: Any) -> str | None:
    """The kind a column's name says, where its text may be a place: `img: photos/17`."""
    place = isinstance(value, str) and len(value) <= LONGEST and re.fullmatch(r"\S*/\S+", value.strip())
    return next((kind for kind, called in _CALLED.items() if place and called.fullmatch(name)), None)


def unasked(values: Mapping[str, Any], used: Collection[str], images: bool, videos: bool) -> Iterator[RowError]:
    """One error for each column that seems to cut or bound the row's media, and is not among `used`."""
    for name in (*_CUTS, *_ASKS) if videos else ("min_pixels", "max_pixels") if images else ():
        value = values.get(name)
        if name in used or not isinstance(value, int | float | str) or not re.search(r"\d", str(value)):
            continue
        kind = "video" if videos else "image"
        key = name.removeprefix("video_").removeprefix("clip_").removesuffix("_time")
        fix = f'write {{"path": ..., "{key}": {value!r}}} as the {kind}; if not meant: data.ignore=[{name}]'
        yield RowError(name, f"looks like what the {kind} is to be read by, and nothing reads it", fix)


def _option_columns(rest: Mapping[str, Any]) -> list[str]:
    """Columns that hold one option each: A, B, ...; option_a, option_b; choice1, choice2; from the first on."""
    found: dict[str, dict[str, str]] = {}
    for name, value in rest.items():
        match = _ONE_OPTION.fullmatch(name)
        if match and isinstance(value, str | int | float) and str(value).strip():
            found.setdefault((match[1] or "").lower().strip("_- "), {})[(match[2] or match[3]).lower()] = name
    for named in found.values():
        for start in ("ab", "12", "01"):
            if set(start) <= named.keys():
                return [named[mark] for mark in sorted(named)]
    return []


def _article(kind: str) -> str:
    return "an image" if kind == "image" else f"a {kind}" if kind == "video" else "audio"


def _fix(name: str, ours: str) -> str:
    meant = "" if ours == "audio" else f"if the model is to see it: data.columns.{ours}={name}; "
    return f"{meant}if not: data.ignore=[{name}]"
