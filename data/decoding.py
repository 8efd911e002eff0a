"""Video files to frames: header, budgets, the readers {decord, pyav, torchcodec}, resize.

Runs in a decoder process (`mmrl.data.decoder_process`) or, for trusted files, in the caller's.

Traps, each with a test:
- decord 0.6.0 garbles files with rotation metadata without an error, and cannot read AV1: PyAV takes over.
- Playlists (m3u8, ffconcat) make FFmpeg open other files and addresses: containers are admitted by their
  first bytes, before FFmpeg sees them.
- Under a variable frame rate, frame k is not shown at k / fps: such files are read as if they had a constant
  one, frame k being the frame on screen at that time, so that timestamps stay right.
- A file cut short still opens: frames found are compared with frames promised.
"""

from __future__ import annotations

import bisect
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmrl.data.sampling import choose_frames, frame_size
from mmrl.errors import ConfigError, DataError
from mmrl.media import VideoSampling

_PACKAGES = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec"}
_AUTO = ("decord", "pyav")
_LOCAL_FILES = {"protocol_whitelist": "file"}
_CHUNK_BYTES = 256 * 2**20

_MAGIC = {  # container: (offset, first bytes)
    "mp4/mov": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    "matroska/webm": (0, (b"\x1aE\xdf\xa3",)),
    "avi": (8, (b"AVI ",)),
    "gif": (0, (b"GIF87a", b"GIF89a")),
    "mpeg": (0, (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x47")),
    "flv": (0, (b"FLV\x01",)),
    "ogg": (0, (b"OggS",)),
    "asf/wmv": (0, (b"0&\xb2u",)),
}


class BackendError(Exception):
    """This reader cannot read this file; another may."""


@dataclass(frozen=True)
class DecodeLimits:
    """Budgets of one file, read from its header before any frame is decoded; `timeout` is wall-clock seconds.

    `timeout` holds in a decoder process only: nothing can interrupt FFmpeg inside the caller's.
    """

    max_pixels: int = 8192 * 4320
    max_frames: int = 1_000_000
    max_duration: float = 4 * 3600.0
    max_file_bytes: int = 16 * 2**30
    max_output_bytes: int = 4 * 2**30
    timeout: float = 120.0


@dataclass(frozen=True)
class Header:
    """What a container says of its first video stream; 0 where it says nothing. Height and width are upright.

    duration  seconds, of the video stream or, failing that, of the whole file
    promised  seconds of the video stream itself
    """

    height: int
    width: int
    frames: int
    duration: float
    promised: float
    fps: float
    codec: str
    rotation: int


@dataclass
class Decoded:
    """`pixels` (F, 3, H, W) uint8 and the fields of `mmrl.media.Frames` that describe them.

    refused  reader: why it was passed over
    """

    pixels: Tensor
    indices: list[int]
    fps: float
    total_frames: int
    size: tuple[int, int]
    backend: str
    refused: dict[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """Random access to the frames of one file, in the order they are shown."""

    times: np.ndarray  # (N,) seconds, relative to the first frame
    fps: float

    def pixels(self, indices: list[int]) -> np.ndarray:
        """(F, H, W, 3) uint8; raises BackendError for a frame that cannot be decoded."""
        ...


@cache
def installed(backend: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[backend]) is not None


def backend_chain(backend: str) -> list[tuple[str, str]]:
    """Readers to try, in order, each with its identity: what was tried before it belongs to it.

    `[("decord", "decord 0.6.0"), ("pyav", "pyav 18.1.0 after decord 0.6.0")]`
    """
    names = [n for n in _AUTO if installed(n)] if backend == "auto" else [backend]
    if not names or not installed(names[0]):
        raise ConfigError(f"video backend {backend!r} is not installed: pip install {_PACKAGES.get(backend, 'av')}")
    chain, before = [], ""
    for name in names:
        identity = f"{name} {version(_PACKAGES[name])}"
        chain.append((name, identity + (f" after {before}" if before else "")))
        before = identity
    return chain


def check_container(path: Path, limits: DecodeLimits) -> None:
    """Refuse what is missing, empty, too large, or not a video container, by its first bytes."""
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: is empty (0 bytes)")
    if size > limits.max_file_bytes:
        raise DataError(f"{path}: {size:,} bytes, the limit is {limits.max_file_bytes:,}")
    with path.open("rb") as file:
        head = file.read(16)
    if not any(head[at:].startswith(magics) for at, magics in _MAGIC.values()):
        raise DataError(f"{path}: not a video container (known: {', '.join(_MAGIC)}); it starts with {head[:8]!r}")


def read_header(path: Path, limits: DecodeLimits) -> Header:
    """The header, checked against the limits; the first frame is decoded (for its rotation) only after that."""
    import av
    from av.error import FFmpegError

    check_container(path, limits)
    try:
        with av.open(str(path), options=_LOCAL_FILES) as container:
            stream = video_stream(container)
            if stream is None:
                raise DataError(f"{path}: has no video stream (it holds: {', '.join(map(_kind, container.streams))})")
            promised = _stream_seconds(stream)
            header = Header(
                height=stream.height,
                width=stream.width,
                frames=stream.frames,
                duration=promised or (container.duration or 0) / 1e6,
                promised=promised,
                fps=float(stream.average_rate or 0),
                codec=stream.codec_context.codec.canonical_name,
                rotation=0,
            )
            _check_budgets(path, header, limits)
            first = next(container.decode(stream), None)
    except FFmpegError as error:
        raise DataError(f"{path}: cannot be opened as video: {error.strerror}") from None
    if first is None:
        raise DataError(f"{path}: its video stream holds no frame")
    height, width = (first.height, first.width) if first.rotation % 180 == 0 else (first.width, first.height)
    return replace(header, height=height, width=width, rotation=int(first.rotation))


def video_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture, or None."""
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _kind(stream: Any) -> str:
    return f"{stream.type} {stream.codec_context.name if stream.codec_context else ''}".strip()


def _stream_seconds(stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # matroska: 00:00:02.000000000
    if tag.count(":") != 2:
        return 0.0
    hours, minutes, seconds = tag.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _check_budgets(path: Path, header: Header, limits: DecodeLimits) -> None:
    for what, value, limit in (
        ("pixels in a frame", header.height * header.width, limits.max_pixels),
        ("frames", header.frames, limits.max_frames),
        ("seconds", header.duration, limits.max_duration),
    ):
        if value > limit:
            raise DataError(f"{path}: {value:,.0f} {what}, the limit is {limit:,.0f}")


class DecordReader:
    def __init__(self, path: Path, header: Header):
        import decord

        if header.rotation:
            raise BackendError(f"rotation by {header.rotation} degrees is misread")
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
            spans = self._reader.get_frame_timestamp(range(len(self._reader)))
        except (RuntimeError, decord.DECORDError) as error:
            raise BackendError(_last_line(error)) from None
        if not len(spans):
            raise BackendError("no frame found")
        self.times = spans[:, 0].astype(np.float64) - float(spans[0, 0])
        self.fps = float(self._reader.get_avg_fps())

    def pixels(self, indices: list[int]) -> np.ndarray:
        import decord

        try:
            return self._reader.get_batch(indices).asnumpy()
        except (RuntimeError, IndexError, decord.DECORDError) as error:
            raise BackendError(_last_line(error)) from None


class PyAVReader:
    """Seeks to the keyframe before each frame wanted; files without timestamps are decoded from the start."""

    def __init__(self, path: Path, header: Header):
        self._path, self._rotation = path, header.rotation
        self.times, self._stamps, self._keys = _scan_packets(path, header)
        self.fps = header.fps

    def pixels(self, indices: list[int]) -> np.ndarray:
        import av
        from av.error import FFmpegError

        wanted = sorted({self._stamp(i) for i in indices})
        try:
            with av.open(str(self._path), options=_LOCAL_FILES) as container:
                found = self._decode(container, wanted, seek=self._stamps is not None)
            if self._stamps is not None and len(found) < len(wanted):  # a seek that landed too late
                with av.open(str(self._path), options=_LOCAL_FILES) as container:
                    found = self._decode(container, wanted, seek=False)
        except FFmpegError as error:
            raise BackendError(error.strerror) from None
        if len(found) < len(wanted):
            lost = next(i for i in indices if self._stamp(i) not in found)
            raise BackendError(f"frame {lost} of {len(self.times)} cannot be decoded")
        if len({f.shape for f in found.values()}) > 1:
            raise BackendError("frames change their size within the file")
        return np.stack([found[self._stamp(i)] for i in indices])

    def _stamp(self, index: int) -> int:
        return index if self._stamps is None else self._stamps[index]

    def _decode(self, container: Any, wanted: list[int], seek: bool) -> dict[int, np.ndarray]:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        found: dict[int, np.ndarray] = {}
        frames, position = enumerate(container.decode(stream)), -1 if self._stamps is None else -math.inf
        for stamp in wanted:
            if seek:
                key = self._keys[max(bisect.bisect_right(self._keys, stamp) - 1, 0)]
                if key > position:
                    container.seek(key, stream=stream)
                    frames = enumerate(container.decode(stream))
            for number, frame in frames:
                position = number if self._stamps is None else frame.pts
                if position == stamp:
                    found[stamp] = upright(frame.to_ndarray(format="rgb24"), self._rotation)
                if position >= stamp:
                    break
        return found


class TorchCodecReader:
    def __init__(self, path: Path, header: Header):
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        self.times, _, _ = _scan_packets(path, header)
        try:
            self._decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
        except (RuntimeError, ValueError) as error:
            raise BackendError(_last_line(error)) from None
        self.fps = float(self._decoder.metadata.average_fps)
        if len(self._decoder) != len(self.times):
            raise BackendError(f"finds {len(self._decoder)} frames where the container holds {len(self.times)}")

    def pixels(self, indices: list[int]) -> np.ndarray:
        try:
            return self._decoder.get_frames_at(indices=indices).data.permute(0, 2, 3, 1).numpy()
        except (RuntimeError, IndexError) as error:
            raise BackendError(_last_line(error)) from None


_READERS: dict[str, Callable[[Path, Header], Reader]] = {
    "decord": DecordReader,
    "pyav": PyAVReader,
    "torchcodec": TorchCodecReader,
}


def _scan_packets(path: Path, header: Header) -> tuple[np.ndarray, list[int] | None, list[int]]:
    """Seconds of each frame (N,), its timestamps in the stream's unit (None: it has none), and the keyframes'."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), options=_LOCAL_FILES) as container:
            stream = video_stream(container)
            shown = (p for p in container.demux(stream) if p.size and not p.is_discard)
            packets = [(p.pts, p.is_keyframe) for p in shown]  # the packets themselves are the whole file
            unit = float(stream.time_base or 0)
    except FFmpegError as error:
        raise BackendError(error.strerror) from None
    if not packets:
        raise BackendError("no frame found")
    stamps = sorted({pts for pts, _ in packets if pts is not None})
    keys = sorted(pts for pts, is_key in packets if pts is not None and is_key)
    if len(stamps) == len(packets) and keys:
        return (np.asarray(stamps, np.float64) - stamps[0]) * unit, stamps, keys
    if not header.fps:
        raise BackendError("neither timestamps nor a frame rate")
    return np.arange(len(packets)) / header.fps, None, []


def upright(frame: np.ndarray, rotation: int) -> np.ndarray:
    """(H, W, 3) turned by `rotation` degrees counter-clockwise, as the container asks players to show it."""
    turns, rest = divmod(rotation, 90)
    if rest:
        raise BackendError(f"rotation by {rotation} degrees is not a multiple of 90")
    return np.rot90(frame, turns)


def _last_line(error: Exception) -> str:
    """decord's messages end in a stack trace; the sentence before it says why."""
    text = str(error).split("Stack trace")[0].strip()
    return text.splitlines()[-1].split(": ", 1)[-1] if text else type(error).__name__


def open_reader(path: Path, header: Header, backend: str) -> Reader:
    """Open, and compare the frames found with those the header promises."""
    reader = _READERS[backend](path, header)
    found, last = len(reader.times), reader.times[-1]
    if found + 2 < header.frames:
        raise BackendError(f"holds {found} of the {header.frames} frames its header promises: cut short?")
    if not header.frames and last + 0.5 < 0.95 * header.promised:
        raise BackendError(f"ends at {last:.2f} s of the {header.promised:.2f} s its header promises: cut short?")
    return reader


def timeline(times: np.ndarray, fps: float) -> tuple[float, np.ndarray | None]:
    """Frame rate, and for a variable one which frame is on screen at k / fps, for each k.

    `times` (N,) seconds. The rate is constant where no frame is more than one frame's time off its place.
    """
    count = len(times)
    if count < 2 or times[-1] <= 0:
        return fps or 1.0, None
    if fps > 0 and np.abs(times - np.arange(count) / fps).max() <= 1 / fps:
        return fps, None
    mean = (count - 1) / float(times[-1])
    shown = np.searchsorted(times, np.arange(count) / mean + 1e-3, side="right") - 1
    return mean, shown


def resize(frames: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """(F, 3, H, W) uint8 to `size`: float32, antialiased, rounded; the numbers of torchvision's tensor resize."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    smooth = interpolation != "nearest"
    out = torch.nn.functional.interpolate(
        frames.float(), size, mode=interpolation, antialias=smooth, align_corners=False if smooth else None
    )
    return out.clamp_(0, 255).round_().to(torch.uint8)


def _read(
    reader: Reader,
    header: Header,
    sampling: VideoSampling,
    start: float | None,
    end: float | None,
    limits: DecodeLimits,
) -> Decoded:
    if len(reader.times) > limits.max_frames:
        raise DataError(f"{len(reader.times):,} frames, the limit is {limits.max_frames:,}")
    fps, shown = timeline(reader.times, reader.fps)
    indices, total = choose_frames(len(reader.times), fps, sampling, start, end)
    picked = indices if shown is None else shown[indices].tolist()
    size = frame_size(header.height, header.width, len(indices), sampling)
    needed = len(indices) * 3 * size[0] * size[1]
    if needed > limits.max_output_bytes:
        raise DataError(f"{needed:,} bytes of frames, the limit is {limits.max_output_bytes:,}")
    shape = (header.height, header.width, 3)
    step = max(1, _CHUNK_BYTES // math.prod(shape))
    parts = []
    for at in range(0, len(picked), step):
        chunk = reader.pixels(picked[at : at + step])
        if chunk.shape[1:] != shape:
            raise BackendError(f"frames came as {chunk.shape[1:]}, the first is {shape}")
        upright_chw = torch.from_numpy(np.ascontiguousarray(chunk)).permute(0, 3, 1, 2)
        parts.append(resize(upright_chw, size, sampling.interpolation))
    pixels = torch.cat(parts).contiguous()
    return Decoded(pixels, indices, fps, total, (header.height, header.width), backend="")


def decode(
    path: Path,
    sampling: VideoSampling,
    start: float | None = None,
    end: float | None = None,
    limits: DecodeLimits | None = None,
) -> Decoded:
    """Sampled and resized frames of a file, by the first reader of `sampling.backend` that can read it.

    Raises DataError naming the file and, reader by reader, the cause.
    """
    limits = limits or DecodeLimits()
    header = read_header(path, limits)
    refused: dict[str, str] = {}
    for name, identity in backend_chain(sampling.backend):
        try:
            decoded = _read(open_reader(path, header, name), header, sampling, start, end, limits)
        except BackendError as error:
            refused[name] = str(error)
            continue
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        decoded.backend, decoded.refused = identity, refused
        return decoded
    causes = "; ".join(f"{name}: {cause}" for name, cause in refused.items())
    raise DataError(f"{path}: cannot be decoded ({header.codec}). {causes}")
