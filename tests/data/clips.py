"""Clips for the tests: each frame tells its number by its brightness, and its top half is red."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

LEVELS = 4  # brightness steps between neighbouring frames


def frame(number: int, height: int, width: int) -> np.ndarray:
    image = np.full((height, width, 3), number * LEVELS % 256, np.uint8)
    image[: height // 2, :, 0] = 255
    return image


def numbers(pixels) -> list[int]:
    """Which frames these are, read from the brightness of their green channel. `pixels` (F, 3, H, W)."""
    return (pixels[:, 1].float().mean((1, 2)) / LEVELS).round().int().tolist()


def write_clip(
    path: Path,
    frames: int = 60,
    size: tuple[int, int] = (48, 96),
    fps: int = 30,
    codec: str = "libx264",
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode with PyAV; `milliseconds` sets when each frame is shown, for a variable rate."""
    import av

    height, width = size
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        if codec != "libsvtav1":
            stream.bit_rate = 4_000_000  # enough to tell neighbouring frames apart
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(frame(number, height, width), format="rgb24")
            if milliseconds is not None:
                image.pts, image.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def write_rotated(path: Path, upright: Path, clockwise: int) -> Path:
    """A copy of an mp4 whose display matrix asks players to turn it, as phones write it."""
    content = bytearray(upright.read_bytes())
    box = content.index(b"tkhd") + 4
    matrix = box + 4 + (20 if content[box] == 0 else 32) + 16
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    one = 65536
    values = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *values)
    path.write_bytes(content)
    return path


def cut_short(path: Path, whole: Path, share: float = 0.6) -> Path:
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
