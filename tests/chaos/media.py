"""Images, clips and rows that a hand, a disk or an attacker changed: read, or refused in one line that names them."""

from __future__ import annotations

import base64
import io
import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl.data.datasets import open_dataset
from mmrl.data.video import read_clip
from mmrl.errors import MMRLError
from mmrl.media import VideoSampling
from tests.chaos.trials import Tally
from tests.data.clips import write_clip

SAMPLING = VideoSampling(fps=None, min_frames=2, max_frames=4, min_pixels=784, max_pixels=4096)
CLIPS = (("libx264", ".mp4"), ("libx264", ".mkv"), ("mpeg4", ".avi"), ("mpeg2video", ".ts"), ("libvpx-vp9", ".webm"))
SECRET = (250, 10, 200)
NAMES = (
    "v%d.png", "v%d.mp4", "v%01d.gif", "%{x,..%}.mp4", "v*.png", "v?.mp4", "v[0-9].mp4", "a:b.mp4", "file:v0.png",
    "concat:v0.png|v1.png", "http:x.mp4", "pipe:0.mp4", "data:x.mp4", "subfile,,start,0,end,9,,:v0.png", "crypto:x.mp4",
    "cache:x.mp4", "async:x.mp4", "tee:x.mp4", "lavfi.mp4", "-i.mp4", "~.mp4", "$HOME.mp4", "a b.mp4", "x.m3u8",
    "x.ffconcat", "x.sdp", "x.txt",
)  # fmt: skip
LISTS = (
    "ffconcat version 1.0\nfile {film}\n", "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2,\n{film}\n#EXT-X-ENDLIST\n",
    "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n", "[playlist]\nFile1={film}\n", "{film}\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{film}</BaseURL></MPD>',
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
ROWS: tuple[Any, ...] = (
    "{", "[]", "1", "null", "nul", '"text"', "{}", '{"prompt": 1}', '{"prompt": []}', '{"prompt": {}}',
    '{"prompt": [1]}', '{"prompt": [{"role": 1, "content": 2}]}', '{"prompt": "x", "image": 1}',
    '{"prompt": "x", "image": []}', '{"prompt": "x", "image": {"bytes": 3}}', '{"prompt": "x", "image": "\\ud800.png"}',
    '{"prompt": "x", "image": "/etc/passwd"}', '{"prompt": "x", "image": "../../etc/passwd"}', '{"prompt": "\\ud800"}',
    '{"prompt": "x", "solution": ' + "9" * 5000 + "}", '{"prompt": "x", "c": ' + "[" * 5000 + "]" * 5000 + "}",
    '{"prompt": "x", "image": "' + "a" * 300 + '.png"}', '{"prompt": "x", "image": "a\\u0000b"}',
    '{"prompt": "x", "images": "a.png"}', '{"prompt": "x", "image": "data:image/png;base64,!"}',
    '{"prompt": "x", "video": "a.mp4"}', '{"prompt": "x", "image": "http://127.0.0.1/"}', '{"prompt": "x", "id": {}}',
    '{"prompt": "x", "image": "' + base64.b64encode(b"\x89PNG\r\n" + b"0" * 400).decode() + '"}', "\x00", "\xff",
    '{"prompt": "x", "solution": NaN}', '{"prompt": "x", "image": ""}', '{"prompt": "x", "image": "."}',
    '{"prompt": "x", "video": "a\\nb.mp4"}', '{"prompt": "x", "image": "\\u001b[2J.png"}', '{"prompt": "\\u001b[2J"}',
    '{"prompt": "x", "video": {"path": "a.mp4", "start": -1}}', '{"prompt": "x", "video": ["/etc/passwd"]}',
    '{"prompt": "x", "image": "file:///etc/passwd"}', '{"prompt": "x", "image": "~/x.png"}',
    '{"prompt": "x", "image": "link"}',
    '{"prompt": "<image><image>", "image": "a.png"}', '{"prompt": "x"} trailing', '{"prompt": "x", "prompt": "y"}',
)  # fmt: skip


def fuzz(folder: Path, count: int, seed: int = 0) -> list[Tally]:
    folder.mkdir(parents=True, exist_ok=True)
    images = Tally("an image with changed bytes")
    draw = random.Random(seed)
    originals = list(_originals(draw))
    for number in range(count):
        content = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content) if draw.random() < 0.5 else min(64, len(content)))] = draw.randrange(
                256
            )
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        (folder / "a.img").write_bytes(content)
        images.count(_read(folder, json.dumps({"prompt": "<image>x", "image": "a.img"}), f"image {number}"))
    rows = Tally("an odd row of a data set")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "link").symlink_to("/etc/passwd")
    for row in ROWS:
        rows.count(_read(folder, row, row[:60]))
    return [images, rows]


def clips(folder: Path, count: int, seed: int = 0) -> list[Tally]:
    """Clips with changed bytes, through the decoder process: read, or refused in one line; and names that FFmpeg takes
    for patterns, lists or addresses, which read nothing but the file of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = Tally("a clip with changed bytes, through the decoder process")
    draw = random.Random(seed)
    for codec, ending in CLIPS:
        path = write_clip(folder / f"whole{ending}", 12, (32, 48), codec=codec)
        originals = path.read_bytes()
        for number in range(count // len(CLIPS)):
            content = bytearray(originals)
            for _ in range(draw.randint(1, 8)):
                content[draw.randrange(len(content) if draw.random() < 0.7 else 64)] = draw.randrange(256)
            if draw.random() < 0.2:
                del content[draw.randrange(len(content)) :]
            (folder / f"changed{ending}").write_bytes(content)
            changed.count(_read_clip(folder / f"changed{ending}", f"clip {codec} {number}"))
    return [changed, _named(folder)]


def _named(folder: Path) -> Tally:
    tally = Tally("a clip whose name FFmpeg takes for a pattern, a list or an address")
    secret = folder / "secret"
    secret.mkdir(exist_ok=True)
    for number in range(4):
        Image.new("RGB", (48, 32), SECRET).save(secret / f"v{number}.png")
        (folder / f"v{number}.png").symlink_to(secret / f"v{number}.png")
    film = write_clip(secret / "film.mp4", 12, (32, 48))
    lists = [text.format(film=film).encode() for text in LISTS]
    whole = [b"GIF89a" + bytes(40), (folder / "whole.mp4").read_bytes(), *lists]
    for name in NAMES:
        for content in whole:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            tally.count(_read_clip(path, name, secret=content != whole[1]))
            path.unlink()
    return tally


def _read_clip(path: Path, what: str, *, secret: bool = False) -> str:
    """secret  whatever can be read under this name is not this file"""
    try:
        for backend in ("auto", "decord"):
            read_clip(path, SAMPLING.model_copy(update={"backend": backend}))
            if secret:
                return f"{what}: read something by {backend}"
    except MMRLError as error:
        text = str(error)
        return "" if "\n" not in text and len(text) < 600 else f"{what}: long: {text[:300]!r}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    return ""


def _originals(draw: random.Random) -> Iterator[bytes]:
    for kind in FORMATS:
        for size in ((32, 24), (3, 50)):
            for mode in ("RGB", "L", "P"):
                image = Image.frombytes("RGB", size, draw.randbytes(size[0] * size[1] * 3)).convert(mode)
                exif = image.getexif()
                exif[0x0112], exif[0x010E] = draw.randint(1, 8), "a description"
                with io.BytesIO() as file:
                    try:
                        image.save(file, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
                    except OSError:  # this kind has no such mode
                        continue
                    yield file.getvalue()


def _read(folder: Path, row: str, what: str) -> str:
    """ "" where the row is read or refused in one line."""
    path = folder / "rows.jsonl"
    path.write_bytes(row.encode("utf-8", "surrogatepass") + b"\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for prompt in open_dataset(path):
                for image in prompt.images:
                    image.load()
    except MMRLError as error:
        text = str(error)
        return "" if "\n" not in text and len(text) < 600 else f"{what}: long: {text[:200]!r}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    return ""
