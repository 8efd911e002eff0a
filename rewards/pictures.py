"""Pictures and clips as rewards send them: data URIs, and a few frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl.errors import RewardError
from mmrl.over_http import FORMATS, to_base64


def data_uri(image: Any, kind: str = "PNG") -> str:
    return f"data:image/{kind.lower()};base64,{to_base64(image, kind)}"


def is_image(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "size")


def frames_of(video: Any, count: int) -> list[Any]:
    """At most `count` frames, evenly spread, as PIL images, of a list of images, an array (F, H, W, C) or a clip."""
    if isinstance(video, Sequence) and not isinstance(video, str | bytes) and video and all(map(is_image, video)):
        return [video[i] for i in spread(len(video), count)]
    if hasattr(video, "shape") and len(video.shape) == 4:
        return _of_array(video, count)
    if hasattr(video, "paths"):
        return [_opened(video.paths[i]) for i in spread(len(video.paths), count)]
    path = getattr(video, "path", video)
    if not isinstance(path, str | Path):
        raise RewardError(
            f"videos are read as paths, clips, lists of images or arrays (F, H, W, C); got {type(video).__name__}"
        )
    return _decoded(str(path), count, getattr(video, "start", None), getattr(video, "end", None))


def spread(length: int, count: int) -> list[int]:
    """The middles of `count` equal parts."""
    count = min(length, count)
    return [int((i + 0.5) * length / count) for i in range(count)]


def _of_array(video: Any, count: int) -> list[Any]:
    import numpy as np
    from PIL import Image

    array = np.asarray(video.detach().cpu() if hasattr(video, "detach") else video)
    array = array.transpose(0, 2, 3, 1) if array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3) else array
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(np.repeat(f, 3, -1) if f.shape[-1] == 1 else f) for f in array[spread(len(array), count)]]


def _opened(path: str | Path) -> Any:
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        return image.convert("RGB")


def _decoded(path: str, count: int, start: float | None, end: float | None) -> list[Any]:
    """Read by PyAV: the frames shown at evenly spread times between `start` and `end` seconds."""
    import av

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            length = float(stream.duration * stream.time_base) if stream.duration else float(container.duration / 1e6)
            first, last = start or 0.0, min(end or length, length)
            wanted = [first + (i + 0.5) * (last - first) / count for i in range(count)]
            found: list[Any] = []
            for frame in container.decode(stream):
                while len(found) < count and frame.time is not None and frame.time >= wanted[len(found)] - 1e-3:
                    found.append(frame.to_image())
                if len(found) == count:
                    break
                kept = frame
            while len(found) < count and kept is not None:
                found.append(kept.to_image())
    except (OSError, av.FFmpegError, IndexError, UnboundLocalError) as error:
        raise ValueError(f"{Path(path).name} cannot be read as video: {error}") from None
    return found
