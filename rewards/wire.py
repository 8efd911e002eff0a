"""What travels between the trainer and a reward worker: one JSON line, then raw bytes for images.

Values come out as they went in: strings, numbers, None, lists, tuples, dictionaries, paths, PIL images pixel by pixel,
films with their rate, sounds sample by sample, and outputs of several stretches. numpy arrays and tensors arrive as
lists. Anything else is refused by name, never turned into text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mmrl.errors import RewardError
from mmrl.told import Told

PLAIN_MODES = ("1", "L", "RGB", "RGBA", "I", "F")


def write_message(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    """Raises RewardError for a value that cannot travel."""
    blobs: list[bytes] = []
    body = _encode(message, blobs, "")
    header = {"body": body, "blobs": [len(blob) for blob in blobs]}
    stream.write(json.dumps(header).encode() + b"\n")
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message, or None when the other side closed, died in the middle of one, or wrote something else."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    try:
        header = json.loads(line)
        blobs = [stream.read(size) for size in header["blobs"]]
        whole = [len(blob) for blob in blobs] == header["blobs"]
        return _decode(header["body"], blobs) if whole else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _encode(value: Any, blobs: list[bytes], where: str) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = [[_encode(k, blobs, where), _encode(v, blobs, f"{where}.{k}")] for k, v in value.items()]
        plain = all(isinstance(k, str) and not k.startswith("$") for k, _ in items)
        return dict(items) if plain else {"$items": items}
    if isinstance(value, list | tuple):
        each = [_encode(v, blobs, f"{where}[{i}]") for i, v in enumerate(value)]
        if hasattr(value, "fps"):
            return {"$film": [value.fps, each]}
        return each if isinstance(value, list) else {"$tuple": each}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        value = value if value.mode in PLAIN_MODES else value.convert("RGB")
        blobs.append(value.tobytes())
        return {"$image": [value.mode, *value.size, len(blobs) - 1]}
    if hasattr(value, "samples") and hasattr(value, "rate"):
        import numpy as np

        samples = np.asarray(value.samples, dtype="<f4")
        blobs.append(samples.tobytes())
        return {"$sound": [value.rate, *samples.shape, len(blobs) - 1]}
    if isinstance(value, Told):
        return {"$told": [_encode(v, blobs, f"{where}[{i}]") for i, v in enumerate(value.stretches)]}
    if hasattr(value, "tolist"):
        return _encode(value.tolist(), blobs, where)
    raise RewardError(
        f"{where.removeprefix('.')} is a {type(value).__name__}, which cannot go to a reward worker; "
        "expected text, numbers, lists, dictionaries, PIL images or sounds (or set `isolated: false`)"
    )


def _decode(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, list):
        return [_decode(v, blobs) for v in value]
    if not isinstance(value, dict):
        return value
    if "$items" in value:
        return {_decode(k, blobs): _decode(v, blobs) for k, v in value["$items"]}
    if "$tuple" in value:
        return tuple(_decode(v, blobs) for v in value["$tuple"])
    if "$path" in value:
        return Path(value["$path"])
    if "$image" in value:
        from PIL import Image

        mode, width, height, index = value["$image"]
        return Image.frombytes(mode, (width, height), blobs[index])
    if "$film" in value:
        from mmrl.media import Film

        fps, frames = value["$film"]
        return Film(_decode(frames, blobs), fps)
    if "$sound" in value:
        import numpy as np

        from mmrl.media import Sound

        rate, channels, count, index = value["$sound"]
        return Sound(np.frombuffer(blobs[index], dtype="<f4").reshape(channels, count).copy(), rate)
    if "$told" in value:
        return Told(_decode(value["$told"], blobs))
    return {k: _decode(v, blobs) for k, v in value.items()}
