"""Images and rows that a hand, a disk or an attacker changed: read, or refused in one line that names them."""

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
from mmrl.errors import MMRLError
from tests.chaos.trials import Tally

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
    for row in ROWS:
        rows.count(_read(folder, row, row[:60]))
    return [images, rows]


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
