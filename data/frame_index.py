"""Which frames a video file shows, and when, by its packets: the account that every reader is held to.

Packets are read, not decoded, once a file; the cache keeps the result. What counts is what a player shows:
- Frames in the order and at the times of their presentation stamps, from the first one shown on (time 0), whatever
  stamp it bears: files start at 1.7 s, or before 0.
- Packets before the start of an edit list (cuts by stream copy) are decoded and not shown.
- A file that starts within a group of pictures shows nothing before its first key frame, and of the frames that lead
  it only those which can be decoded without the group before. One frame is decoded to see which.
- H.264 with B-frames in AVI and ASF carries stamps in the order of decoding. Its frames are known by their number.
- Where frames are missing or the rate varies, frame k is not shown at k / fps: time is cut into slots (`timeline`),
  and what counts is the frame on screen in each.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrl.data.containers import HEAD, KNOWN, container_of, missing_part
from mmrl.errors import DataError

FORMAT = 1
GRID = 1000.0
"""Slots a second for a variable rate, about: frames closer than this are one."""

_LOCAL_FILES = {"protocol_whitelist": "file"}
_WITHOUT_STAMPS = ("avi", "asf")


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

    container  FFmpeg's demuxer
    frames     that the header promises
    duration   seconds, of the video stream or, failing that, of the whole file
    fps        average rate
    rotation   degrees counter-clockwise that players turn it by, after mirroring it left to right if `mirrored`
    probe      for `open_video`
    """

    container: str
    codec: str
    height: int
    width: int
    frames: int
    duration: float
    fps: float
    rotation: int = 0
    mirrored: bool = False
    probe: int = 0


class Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    key: bool
    hidden: bool
    corrupt: bool
    size: int


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a file in the order they are shown.

    stamps    (N,) int64, rising: time of each frame in units of the stream
    keys      (K, 2) int64, rising: presentation and decoding stamp of each key frame, hidden ones too
    unit      seconds of one unit
    numbered  stamps of packets are not those of the frames they hold: frame k is the k-th that comes out
    leading   some frames are shown before the key frame that they come after in the file (open groups)
    reorder   a frame is predicted from frames shown up to this many later
    """

    header: Header
    stamps: np.ndarray
    keys: np.ndarray
    unit: float
    numbered: bool
    leading: bool
    reorder: int = 0

    @property
    def times(self) -> np.ndarray:
        """(N,) seconds since the first frame."""
        return (self.stamps - self.stamps[0]) * self.unit

    def save(self, path: Path) -> None:
        """Write under another name and rename: a reader sees all of it or nothing."""
        described = {k: v for k, v in vars(self).items() if k not in ("stamps", "keys")} | {
            "header": asdict(self.header),
            "format": FORMAT,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, stamps=self.stamps, keys=self.keys, described=np.array(json.dumps(described)))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> FrameIndex | None:
        """What `save` wrote; None where nothing sound is there (an archive checks its own bytes)."""
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                described = json.loads(str(stored["described"]))
                if described.pop("format") != FORMAT:
                    return None
                described["header"] = Header(**described["header"])
                index = cls(stamps=stored["stamps"], keys=stored["keys"], **described)
        except Exception:  # what zip, numpy, json and the types above raise on what somebody else wrote
            return None
        return index if index._sound() else None

    def _sound(self) -> bool:
        """Whether these are stamps that rise and keys in pairs, of a header of the right types."""
        arrays = self.stamps.dtype == self.keys.dtype == np.int64 and self.keys.shape == (len(self.keys), 2)
        rises = self.stamps.ndim == 1 and len(self.stamps) > 0 and bool((np.diff(self.stamps) > 0).all())
        kinds = {field.name: field.type for field in fields(Header)}
        typed = all(type(value).__name__ == kinds[name] for name, value in vars(self.header).items())
        return arrays and rises and typed and isinstance(self.unit, float) and self.unit > 0


def check_container(path: Path, limits: DecodeLimits) -> str:
    """Refuse what is missing, empty, too large, or not a video container by its first bytes; returns its demuxer."""
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'does not exist'}")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: is empty (0 bytes)")
    if size > limits.max_file_bytes:
        raise DataError(f"{path}: {size:,} bytes, the limit is {limits.max_file_bytes:,}")
    with path.open("rb") as file:
        head = file.read(HEAD)
    container = container_of(head)
    if container is None:
        raise DataError(f"{path}: not a video container (known: {KNOWN}); it starts with {head[:8]!r}")
    return container


@contextmanager
def open_video(path: Path, container: str, probe: int = 0) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream that is not a cover picture, to be decoded by one thread.

    probe  bytes to look through for streams, where FFmpeg's own choice is too few
    """
    import av
    from av.stream import Disposition

    further = {"probesize": str(probe), "analyzeduration": str(10**12)} if probe else {}
    with av.open(f"file:{path}", format=container, options=_LOCAL_FILES | further, metadata_errors="replace") as file:
        pictures = (s for s in file.streams.video if not s.disposition & Disposition.attached_pic)
        stream = next(pictures, None)
        if stream is None:
            held = ", ".join(
                f"{s.type} {s.codec_context.name if s.codec_context else ''}".strip() for s in file.streams
            )
            raise DataError(f"{path}: has no video stream (it holds: {held})")
        if stream.codec_context is None:
            raise DataError(f"{path}: the FFmpeg of PyAV has no decoder for its video stream")
        stream.codec_context.thread_count = 1
        yield file, stream


def decoded(packets: Iterable[Any], keyed: bool = True) -> Iterator[Any]:
    """Frames from the first key frame on: what comes before it can only be decoded into garbage.

    keyed  the stream has key frames; one that is refreshed bit by bit may have none
    An empty packet with a time is a frame that the writer dropped; the last one, without, has the decoder hand out
    what it holds.
    """
    started = not keyed
    for packet in packets:
        if packet.size == 0 and packet.dts is not None:
            continue
        started = started or packet.is_keyframe or packet.size == 0
        if started:
            yield from packet.decode()


def frame_index(path: Path, limits: DecodeLimits, stored: Path | None = None) -> FrameIndex:
    """The index of a file, from `stored` if it lies there, written there if not. Raises DataError naming the file."""
    container = check_container(path, limits)
    index = FrameIndex.load(stored) if stored is not None else None
    if index is not None:
        header = index.header
        _check_budgets(path, header, max(header.frames, len(index.stamps)), limits)
        return index
    index = build_index(path, container, limits)
    if stored is not None:
        with suppress(OSError):  # a full or read-only disk: the next read makes it again
            index.save(stored)
    return index


def build_index(path: Path, container: str, limits: DecodeLimits) -> FrameIndex:
    """Read all packets, decode the first frame. Raises DataError for what is damaged, cut short, or over a limit."""
    if fault := missing_part(path, container):
        raise DataError(f"{path}: cannot be read: {fault}: cut short or damaged?")
    try:
        header, packets, unit, reorders, promised = _read_packets(path, container, limits)
    except IndexError:  # of PyAV, for a packet of a stream that appears later than FFmpeg looks, as subtitles do
        header, packets, unit, reorders, promised = _read_packets(path, container, limits, path.stat().st_size)
    _check_budgets(path, header, len(packets), limits)
    first_key = next((i for i, p in enumerate(packets) if p.key), 0)
    shown = [p for p in packets[first_key:] if p.size and not p.hidden]
    if fault := _lacking(packets, shown, header, unit, promised):
        raise DataError(f"{path}: cannot be read ({header.codec}): {fault}")
    stamps, numbered = _stamps(shown, header, reorders)
    first, header = _first_frame(path, header, set() if numbered else set(stamps), any(p.key for p in packets))
    if not numbered:
        stamps = _from_first(stamps, packets[first_key].pts, first)
    elif len(stamps) > 1 and max(steps := np.diff(stamps)) > 1.75 * float(np.median(steps)):
        at = int(steps.argmax())
        raise DataError(
            f"{path}: a frame is missing after packet {at}, and its packets do not say when frames are shown"
        )
    elif shown[0].pts is None and shown[0].dts is None:
        unit = 1 / header.fps
    if (seconds := (stamps[-1] - stamps[0]) * unit) > limits.max_duration:
        raise DataError(f"{path}: {seconds:,.0f} seconds by its packets, the limit is {limits.max_duration:,.0f}")
    keys = sorted({(p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.key and p.pts is not None})
    return FrameIndex(
        header,
        np.asarray(stamps, np.int64),
        np.asarray(keys, np.int64).reshape(-1, 2),
        unit,
        numbered,
        _leads(packets),
        0 if numbered else _reorder(shown),
    )


def _read_packets(
    path: Path, container: str, limits: DecodeLimits, probe: int = 0
) -> tuple[Header, list[Packet], float, bool, tuple[int, float]]:
    """Header, packets in the order of decoding, seconds of a unit, whether frames may be shown in another order, and
    frames and seconds promised."""
    from av.error import FFmpegError

    try:
        with open_video(path, container, probe) as (file, stream):
            header = _header(file, stream, container, probe)
            _check_budgets(path, header, header.frames, limits)
            packets = [
                Packet(p.pts, p.dts, p.duration or 0, p.is_keyframe, p.is_discard, p.is_corrupt, p.size)
                for p in file.demux(stream)
                if p.size or p.pts is not None or p.dts is not None  # the last one only flushes
            ]
            reorders = bool(stream.codec_context.has_b_frames)
            return header, packets, float(stream.time_base or 0), reorders, _promised(stream)
    except FFmpegError as error:
        raise DataError(f"{path}: cannot be opened as video: {error.strerror}") from None
    except IndexError:
        if not probe:
            raise
        raise DataError(f"{path}: holds packets of a stream that it does not name: damaged?") from None


def _header(file: Any, stream: Any, container: str, probe: int) -> Header:
    seconds = _stream_seconds(stream)
    return Header(
        container=container,
        codec=stream.codec_context.codec.canonical_name,
        height=stream.height,
        width=stream.width,
        frames=stream.frames,
        duration=seconds or (file.duration or 0) / 1e6,
        fps=float(stream.average_rate or 0),
        probe=probe,
    )


def _stream_seconds(stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # matroska: 00:00:02.000000000
    if tag.count(":") != 2:
        return 0.0
    with suppress(ValueError):  # a damaged tag promises nothing
        hours, minutes, seconds = map(float, tag.split(":"))
        return hours * 3600 + minutes * 60 + seconds
    return 0.0


def _promised(stream: Any) -> tuple[int, float]:
    """Frames and seconds by the header; no more frames than its own index lists, which leaves out what an edit list
    does, and what writers of AVI counted and dropped."""
    entries = getattr(stream, "index_entries", None)
    frames = min(stream.frames, len(entries)) if entries is not None and len(entries) else stream.frames
    return frames, _stream_seconds(stream)


def _check_budgets(path: Path, header: Header, frames: int, limits: DecodeLimits) -> None:
    for what, value, limit in (
        ("pixels in a frame", header.height * header.width, limits.max_pixels),
        ("frames", frames, limits.max_frames),
        ("seconds", header.duration, limits.max_duration),
    ):
        if value > limit:
            raise DataError(f"{path}: {value:,.0f} {what}, the limit is {limit:,.0f}")


def _lacking(
    packets: list[Packet], shown: list[Packet], header: Header, unit: float, promised: tuple[int, float]
) -> str:
    """What the packets lack of what is needed or the header promises; empty if nothing."""
    if not shown:
        return "its video stream holds no frame"
    if not header.fps and all(p.pts is None and p.dts is None for p in shown):
        return "its frames bear neither times nor a rate"
    for number, packet in enumerate(packets):
        if packet.corrupt:
            return f"packet {number} of {len(packets)} is incomplete or damaged: cut short?"
    frames, seconds = promised
    if len(packets) < frames:
        return f"holds {len(packets)} of the {frames} frames its header promises: cut short?"
    ends = [(p.pts + p.duration) * unit for p in packets if p.pts is not None]
    if not frames and ends and max(ends) + 0.5 < 0.95 * seconds:
        return f"ends at {max(ends):.2f} s of the {seconds:.2f} s its header promises: cut short?"
    return _broken_time(packets, header, unit)


def _broken_time(packets: list[Packet], header: Header, unit: float) -> str:
    """Where decoding times jump back, as in files joined byte by byte, or a frame is lost whose loss nothing else
    tells: pictures of MPEG-1 and 2 come without a gap and bear no number of their own."""
    times = np.asarray([p.dts for p in packets if p.dts is not None], np.float64) * unit
    steps = np.diff(times)
    if len(steps) and steps.min() < -1:
        return f"its times jump back by {-steps.min():.2f} s after packet {int(steps.argmin())}: joined from several?"
    usual = float(np.median(steps)) if len(steps) else 0.0
    if header.codec in ("mpeg1video", "mpeg2video") and usual > 0 and steps.max() > 1.75 * usual:
        return f"a frame is missing after packet {int(steps.argmax())} of {len(packets)}"
    return ""


def _stamps(shown: list[Packet], header: Header, reorders: bool) -> tuple[list[int], bool]:
    """Rising stamps of the shown frames, and whether frames must be told by number."""
    for name in ("pts", "dts"):
        stamps: list[int] = [s for p in shown if (s := getattr(p, name)) is not None]
        if len(stamps) == len(shown):
            rising = all(a < b for a, b in pairwise(stamps))
            as_decoded = rising and reorders and header.container in _WITHOUT_STAMPS
            return sorted(stamps), name == "dts" or as_decoded or len(set(stamps)) < len(stamps)
    return list(range(len(shown))), True


def _first_frame(path: Path, header: Header, stamps: set[int], keyed: bool) -> tuple[int | None, Header]:
    """Stamp of the first sound frame that comes out, and the header with the size and rotation it shows."""
    from av.error import FFmpegError

    try:
        with open_video(path, header.container, header.probe) as (file, stream):
            frames = decoded(file.demux(stream), keyed)
            first = next((f for f in frames if not stamps or (f.pts in stamps and not f.is_corrupt)), None)
    except FFmpegError as error:
        raise DataError(f"{path}: its first frame cannot be decoded ({header.codec}): {error.strerror}") from None
    if first is None:
        raise DataError(f"{path}: no frame of it can be decoded ({header.codec})")
    rotation, mirrored = _orientation(first)
    height, width = (first.height, first.width) if rotation % 180 == 0 else (first.width, first.height)
    return first.pts, replace(header, height=height, width=width, rotation=rotation, mirrored=mirrored)


def _orientation(frame: Any) -> tuple[int, bool]:
    """Degrees counter-clockwise, and whether it is mirrored first: of the matrix by which (x, y) is shown at
    (ax + cy, bx + dy). PyAV's own `rotation` takes a mirror for a turn."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 0, False
    (a, b, _), (c, d, _), _ = np.frombuffer(stored, np.int32).reshape(3, 3).tolist()
    mirrored = a * d - b * c < 0
    across, down = (-a, -b) if mirrored else (a, b)
    return -round(math.degrees(math.atan2(down, across))) % 360, mirrored


def _from_first(stamps: list[int], key: int | None, first: int | None) -> list[int]:
    """Of the frames that lead the first key frame, only those from `first` on, which came out of the decoder."""
    key = stamps[0] if key is None else key
    start = min(key if first is None else first, next((s for s in stamps if s >= key), stamps[0]))
    return [s for s in stamps if s >= start]


def _leads(packets: list[Packet]) -> bool:
    """Whether any frame comes after a key frame in the file and before it on screen."""
    latest = None
    for packet in packets:
        if packet.key:
            latest = packet.pts
        elif latest is not None and packet.pts is not None and packet.pts < latest:
            return True
    return False


def _reorder(shown: list[Packet]) -> int:
    """Frames that a decoder may have used for one frame and shows after it, at most."""
    place = np.argsort(np.argsort(np.asarray([p.pts for p in shown], np.int64)))
    return int((np.maximum.accumulate(place) - place).max())


@dataclass(frozen=True)
class Timeline:
    """A file's time in slots of equal length.

    fps    slots a second
    total  slots
    slack  seconds that a frame may lie off its slot
    slots  (N,) slot in which each frame appears; None: frame k in slot k
    """

    fps: float
    total: int
    slack: float
    slots: np.ndarray | None = None

    def frames(self, slots: list[int]) -> list[int]:
        """The frame on screen in each of `slots`."""
        if self.slots is None:
            return slots
        return (np.searchsorted(self.slots, slots, side="right") - 1).tolist()


def timeline(times: np.ndarray, fps: float, unit: float) -> Timeline:
    """Slots for frames shown at `times` (N,) seconds from 0, stamped in units of `unit` seconds.

    They are those of the file's rate where every frame lies on one, up to the rounding of stamps: the header's `fps`,
    or the whole, NTSC or exact rate next to the usual or the least distance of frames. Otherwise they are about a
    millisecond long.
    """
    count = len(times)
    if count < 2 or times[-1] <= 0:
        return Timeline(fps or 1.0, count, 1e-6)
    steps, mean = np.maximum(np.diff(times), 1e-6), (count - 1) / float(times[-1])
    usual, finest = 1 / float(np.median(steps)), 1 / float(steps.min())
    near = [rate for about in (usual, finest) for rate in (round(about), round(about * 1.001) / 1.001, about)]
    for rate in (fps, *near, mean):
        if rate <= 0:
            continue
        slots = np.rint(times * rate).astype(np.int64)
        off = float(np.abs(times - slots / rate).max())
        if off <= min(unit + 1e-4, 0.45 / rate) and (np.diff(slots) > 0).all():
            steady = slots[-1] + 1 == count
            return Timeline(rate, int(slots[-1]) + 1, off + 1e-6, None if steady else slots)
    rate = mean * max(round(GRID / mean), 1)
    slots = np.rint(times * rate).astype(np.int64)
    return Timeline(rate, int(slots[-1]) + 1, 0.5 / rate + 1e-6, slots)
