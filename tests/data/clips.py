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
    return write_displayed(path, upright, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise])


def write_displayed(path: Path, upright: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an mp4 whose pixel (x, y) players show at (ax + cy, bx + dy)."""
    content = bytearray(upright.read_bytes())
    box = content.index(b"tkhd") + 4
    at = box + 4 + (20 if content[box] == 0 else 32) + 16
    a, b, c, d = (65536 * n for n in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut_short(path: Path, whole: Path, share: float = 0.6) -> Path:
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


# ---- clips of every container, whose frames tell their number by bars: eight of them, dark or light ---------------

BARS, WIDTH, HEIGHT = 8, 96, 48


def barred(number: int) -> np.ndarray:
    lit = [30 + 190 * (number >> bit & 1) for bit in range(BARS)]
    row = np.repeat(np.asarray(lit, np.uint8), WIDTH // BARS)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def bars(pixels) -> list[int]:
    """Numbers of frames `pixels` (F, 3, H, W) of any size, read from the middle of each bar."""
    rows = pixels[:, 1].float().mean(1)
    centres = [int((bit + 0.5) * rows.shape[1] / BARS) for bit in range(BARS)]
    lit = rows[:, centres] > 125
    return [sum(1 << bit for bit, on in enumerate(frame) if on) for frame in lit.tolist()]


def write_barred(
    path: Path,
    codec: str,
    options: dict[str, str] | None = None,
    frames: int = 60,
    fps: int = 25,
    at: Sequence[int] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """`at`: when each frame is shown, in frames of `fps` a second, where some are left out."""
    import av

    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.thread_count, stream.bit_rate = WIDTH, HEIGHT, 1, 2_000_000
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(barred(number), format="rgb24")
            image.pts, image.time_base = at[number] if at is not None else number, Fraction(1, fps)
            file.mux(stream.encode(image))
        file.mux(stream.encode())
    return path


def copied(path: Path, source: Path, first: int = 0, last: int | None = None, seconds: float = 0.0) -> Path:
    """Packets `first` to `last` of `source` in the order of decoding, not decoded, moved in time."""
    import av

    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        for packet in [p for p in old.demux(stream) if p.size][first:last]:
            packet.stream = out
            shift = round(seconds / stream.time_base)
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
            new.mux(packet)
    return path


def shown(path: Path) -> list[tuple[float, int]]:
    """What a player shows: seconds after its first frame, by the packets, and number of each frame.

    Nothing of the reader under test is in here: all is decoded in sequence, from the first key frame on, and the
    times of packets, sorted, are given to the frames from the last to the first.
    """
    import av
    import torch

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        unit, times, images, started = stream.time_base, [], [], False
        for packet in file.demux(stream):
            started = started or packet.is_keyframe
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
            if started and (packet.size or packet.dts is None):
                images += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    times = sorted(times)[-len(images) :]
    found = bars(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return [(float((t - times[0]) * unit), number) for t, number in zip(times, found, strict=True)]
