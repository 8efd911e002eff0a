"""Where media may come from, and images: opened by format allow-list, size checked before decoding.

A media value is a path, a `file://` or `data:` address, `{"bytes", "path"}`, raw bytes, a PIL image, or,
where allowed, an http address. Paths are relative to the dataset's folder and stay inside it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl.data.sampling import MAX_ASPECT
from mmrl.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # TIFF: uncompressed, as `datasets` stores palette images
LIMITS = ("min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")  # what a clip may ask for itself
MAX_PIXELS = 64_000_000  # below where Pillow starts to warn of a decompression bomb (89 million)
ORIENTATION = 0x0112  # the tag of EXIF that says how a picture is turned
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
    folder          where in `root` relative paths are looked for, if they are not in `root` itself
    """

    root: Path = field(default_factory=Path.cwd)
    allow_outside: bool = False
    allow_urls: bool = False
    folder: str = ""

    def resolve(self, path: str | Path) -> Path:
        """The file a dataset means by `path`; it must exist and, unless allowed, lie inside `root`."""
        text = os.fspath(path).removeprefix("file://")
        _check_path(text)
        full = Path(os.path.realpath(self.root / text))
        if self.folder and not full.exists():
            full = Path(os.path.realpath(self.root / self.folder / text))
        root = Path(os.path.realpath(self.root))
        if not self.allow_outside and not full.is_relative_to(root):
            raise DataError(f"{text!r} leads outside the dataset's folder {root}; data.allow_outside=true permits it")
        if not full.is_file():
            raise DataError(f"{text!r} does not exist (looked for {full}; data.media_root names another folder)")
        return full

    def fetch(self, url: str) -> bytes:
        """The body of an http address, at most 64 MiB."""
        if not self.allow_urls:
            raise DataError(f"{url[:_SHORT]!r} is an address; download it, or fetch it by data.allow_urls=true")
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
    if any(ord(character) < 32 for character in text):
        raise DataError(f"path holds a control character: {text[:_SHORT]!r}")
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
    own = hashlib.sha256(content).hexdigest() if content is not None else None
    if not isinstance(value, dict):
        return own or media_place(value)
    extra = "".join(f"|{k}={value[k]}" for k in ("start", "end", "fps", *LIMITS) if value.get(k) is not None)
    if own is None:
        inner = value.get("frames") or value.get("path")
        own = media_identity(inner) if isinstance(inner, list | tuple | Image.Image) else media_place(value)
    return own + extra


def describe(value: Any) -> str:
    """`str 'abc...'`, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _SHORT else text[:_SHORT] + '...'}"


def open_media_image(value: Any, access: MediaAccess, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image of a dataset row, whatever form it has there, as upright RGB."""
    if isinstance(value, dict) and isinstance(value.get("path"), Image.Image):
        value = value["path"]
    if isinstance(value, Image.Image):
        _check_shape("image", *value.size)
        return upright_rgb(value)
    content = media_bytes(value)
    if content is None:
        place = media_place(value)
        if not is_url(place):
            return open_image(access.resolve(place), max_pixels)
        content = access.fetch(place)
    return open_image(content, max_pixels)


def open_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image: PNG, JPEG, WEBP, BMP, plain TIFF or the first frame of a GIF, as upright RGB.

    Raises DataError for another format, more than `max_pixels` or an absurd shape (by the header, before decoding), or
    damage.
    """
    with _header(source, max_pixels) as image:
        image.load()
        return upright_rgb(image)


def media_image_size(value: Any, access: MediaAccess) -> tuple[int, int]:
    """(width, height) of the image of a dataset row, upright, by its header. Raises DataError as `open_image` does."""
    value = value["path"] if isinstance(value, dict) and isinstance(value.get("path"), Image.Image) else value
    content = None if isinstance(value, Image.Image) else media_bytes(value)
    if isinstance(value, Image.Image) or (content is None and is_url(media_place(value))):
        return open_media_image(value, access).size
    with _header(access.resolve(media_place(value)) if content is None else content, MAX_PIXELS) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


@contextmanager
def _header(source: str | Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An image of which nothing is decoded yet, and of a kind, size and shape that may be."""
    name = f"image of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{name}: {width}x{height} is {width * height:,} pixels, the limit is {max_pixels:,}")
            _check_shape(name, width, height)
            if image.format == "TIFF" and image.info.get("compression") != "raw":
                raise DataError(f"{name}: a compressed TIFF; TIFF is read only as `datasets` stores palette images")
            yield image
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image in one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}") from None
    except DAMAGE as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None


def _check_shape(name: str, width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{name}: {width}x{height} is more than {MAX_ASPECT} times longer than wide")


@dataclass(frozen=True)
class Sizing:
    """The size at which a model sees an image: the arithmetic of the image processors of the Qwen-VL families.

    factor                  sides are multiples of it: patch size x spatial merge
    min_pixels, max_pixels  bounds on the area
    """

    factor: int = 28
    min_pixels: int = 1
    max_pixels: int = MAX_PIXELS

    def within(
        self, size: tuple[int, int], min_pixels: int | None = None, max_pixels: int | None = None
    ) -> tuple[int, int]:
        """(width, height) of an image of this size, under bounds of its own where it has some."""
        width, height = size
        low, high = min_pixels or self.min_pixels, max_pixels or self.max_pixels
        wide, tall = (round(side / self.factor) * self.factor for side in size)
        if tall * wide > high:
            scale = math.sqrt(height * width / high)
            wide, tall = (max(self.factor, math.floor(s / scale / self.factor) * self.factor) for s in size)
        elif tall * wide < low:
            scale = math.sqrt(low / (height * width))
            wide, tall = (math.ceil(side * scale / self.factor) * self.factor for side in size)
        return wide, tall


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
