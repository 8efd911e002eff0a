"""Where media may come from, and images: opened by format allow-list, size checked before decoding.

A media value is a path, a `file://` or `data:` address, `{"bytes", "path"}`, raw bytes, a PIL image, or,
where allowed, an http address. Paths are relative to the dataset's folder and stay inside it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import struct
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 64_000_000  # below where Pillow starts to warn of a decompression bomb (89 million)
MAX_URL_BYTES = 64 * 2**20
URL_SECONDS = 20
LONGEST_NAME, LONGEST_PATH = 255, 1024
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error)
"""What Pillow's decoders raise on it; TypeError and the like come from EXIF."""
_SHORT = 80


@dataclass(frozen=True)
class MediaAccess:
    """Where media may be read from.

    root            folder that relative paths start from
    allow_outside   let paths, also through links, leave `root`
    allow_urls      fetch http and https images
    """

    root: Path = field(default_factory=Path.cwd)
    allow_outside: bool = False
    allow_urls: bool = False

    def resolve(self, path: str | Path) -> Path:
        """The file a dataset means by `path`; it must exist and, unless allowed, lie inside `root`."""
        text = os.fspath(path).removeprefix("file://")
        _check_path(text)
        full = Path(os.path.realpath(self.root / text))
        root = Path(os.path.realpath(self.root))
        if not self.allow_outside and not full.is_relative_to(root):
            raise DataError(f"{text!r} leads outside the dataset's folder {root}; allow_outside=True permits it")
        if not full.is_file():
            raise DataError(f"{text!r} does not exist (looked for {full})")
        return full

    def fetch(self, url: str) -> bytes:
        """The body of an http address, at most 64 MiB."""
        if not self.allow_urls:
            raise DataError(f"{url[:_SHORT]!r} is an address; download it, or pass allow_urls=True to fetch it")
        try:
            with urllib.request.urlopen(url, timeout=URL_SECONDS) as answer:
                body = answer.read(MAX_URL_BYTES + 1)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise DataError(f"{url[:_SHORT]!r}: {error}") from None
        if len(body) > MAX_URL_BYTES:
            raise DataError(f"{url[:_SHORT]!r}: more than {MAX_URL_BYTES:,} bytes")
        return body


def _check_path(text: str) -> None:
    """DataError for what no file can be called."""
    if "\0" in text:
        raise DataError(f"path holds a zero byte: {text[:_SHORT]!r}")
    try:
        longest = max((len(part.encode()) for part in text.split("/")), default=0)
    except UnicodeEncodeError:
        raise DataError(f"{text[:_SHORT]!r} holds half a character; no file is called so") from None
    if longest > LONGEST_NAME or len(text) > LONGEST_PATH:
        raise DataError(
            f"{text[:_SHORT]!r}... is too long for a file's name ({len(text):,} characters); if it is base64, write "
            "data:image/png;base64,..."
        )


def is_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def data_uri(value: str) -> bytes:
    """The bytes of `data:image/png;base64,...`."""
    head, comma, body = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"{value[:_SHORT]!r}: a data address must read data:TYPE;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise DataError(f"{value[:40]!r}...: not base64 ({error})") from None


def media_bytes(value: Any) -> bytes | None:
    """The bytes a media value carries itself, or None when it names a place."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return media_bytes(value["bytes"] if value.get("bytes") is not None else value.get("path"))
    if isinstance(value, str) and value.startswith("data:"):
        return data_uri(value)
    return None


def media_place(value: Any) -> str:
    """The path or address a media value names."""
    place = value.get("path") if isinstance(value, dict) else value
    if isinstance(place, Path):
        return str(place)
    if not isinstance(place, str) or not place:
        raise DataError(f"expected a path, bytes, a data: address or an image, got {describe(value)}")
    return place


def media_identity(value: Any) -> str:
    """What tells two media values apart, the same on every machine: content, or the place as written."""
    if isinstance(value, Image.Image):
        return hashlib.sha256(f"{value.mode}{value.size}".encode() + value.tobytes()).hexdigest()
    if isinstance(value, list | tuple):
        return "[" + ",".join(media_identity(v) for v in value) + "]"
    content = media_bytes(value)
    if content is not None:
        return hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        extra = "".join(f"|{k}={value[k]}" for k in ("start", "end", "fps") if value.get(k) is not None)
        return media_identity(value["frames"] if value.get("frames") else media_place(value)) + extra
    return media_place(value)


def describe(value: Any) -> str:
    """`str 'abc...'`, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _SHORT else text[:_SHORT] + '...'}"


def open_media_image(value: Any, access: MediaAccess, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image of a dataset row, whatever form it has there, as upright RGB."""
    if isinstance(value, Image.Image):
        return upright_rgb(value)
    content = media_bytes(value)
    if content is None:
        place = media_place(value)
        if not is_url(place):
            return open_image(access.resolve(place), max_pixels)
        content = access.fetch(place)
    return open_image(content, max_pixels)


def open_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image: PNG, JPEG, WEBP, BMP or the first frame of a GIF, as upright RGB.

    Raises DataError for another format, more than `max_pixels` (by the header, before decoding), or damage.
    """
    name = f"image of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{name}: {width}x{height} is {width * height:,} pixels, the limit is {max_pixels:,}")
            image.load()
            return upright_rgb(image)
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image in one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}") from None
    except DAMAGE as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF orientation says, transparency on white, 16-bit grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda v: v * (1 / 257)).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
