"""Readers of video files {pyav, decord, torchcodec}: random access to frames, each held to the file's index.

PyAV is the reader of `auto`. It says when each frame it hands out is shown, and which are damaged, so that every
frame can be checked. decord 0.6.0 says neither: after a seek it counts frames from where it landed, which in TS,
MPEG-2, WMV or open groups is off by frames to seconds without an error. It reads only where nothing of the kind can
happen (frames, times and key frames as in the index, a container that seeks exactly, closed groups, no rotation), and
each of its frames is compared with PyAV's: who names it pays for two decoders.
"""

from __future__ import annotations

import bisect
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmrl.data.frame_index import FrameIndex, Header, decoded, open_video
from mmrl.errors import ConfigError

_PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
_LOUD = {"err_detect": "crccheck+bitstream+buffer+explode"}
_QUIET_CODECS = (
    "hevc",
    "mpeg1video",
    "mpeg2video",
    "mjpeg",
    "wmv1",
    "wmv2",
    "wmv3",
    "msmpeg4v1",
    "msmpeg4v2",
    "msmpeg4v3",
)
"""Decoders that hand out damaged frames unmarked unless they are told to fail."""


_ROUNDING = 2.0
"""Levels, on average, by which two releases of FFmpeg may differ over one frame."""


class ReaderError(Exception):
    """This reader cannot read this file as its index says it is."""


class _Disagreement(ReaderError):
    """Frames came out otherwise than the index has them."""


class _Damage(ReaderError):
    """A frame came out that its decoder marks as damaged."""


class Reader(Protocol):
    def pixels(self, indices: list[int]) -> np.ndarray:
        """(F, H, W, 3) uint8 upright; raises ReaderError for a frame that cannot be had as the index knows it."""
        ...


@cache
def installed(backend: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[backend]) is not None


def reader_of(backend: str) -> tuple[str, str]:
    """Name and identity of the reader that `backend` means: `("pyav", "pyav 18.1.0")`; `auto` is PyAV."""
    name = "pyav" if backend == "auto" else backend
    if not installed(name):
        raise ConfigError(f"video backend {backend!r} is not installed: pip install {_PACKAGES[name]}")
    return name, f"{name} {version(_PACKAGES[name])}"


def open_reader(path: Path, index: FrameIndex, name: str) -> Reader:
    return _READERS[name](path, index)


class PyAVReader:
    """Seeks to the key frame before each frame wanted, and checks the stamp of every frame on the way there.

    Where a seek lands elsewhere or frames come out otherwise, the file is decoded from its start; where the stamps of
    its packets are not those of its frames, to its end, so that frames can be counted.
    """

    def __init__(self, path: Path, index: FrameIndex):
        self._path, self._index = path, index
        self._stamps: list[int] = index.stamps.tolist()
        self._keys: list[list[int]] = index.keys.tolist()

    def pixels(self, indices: list[int]) -> np.ndarray:
        from av.error import FFmpegError

        wanted = sorted(set(indices))
        try:
            found = self._by_number(wanted) if self._index.numbered else self._by_stamp(wanted)
        except FFmpegError as error:
            raise ReaderError(f"a frame cannot be decoded: {error.strerror}") from None
        if len({f.shape for f in found.values()}) > 1:
            raise ReaderError("frames change their size within the file")
        return np.stack([found[i] for i in indices])

    def _by_stamp(self, wanted: list[int]) -> dict[int, np.ndarray]:
        from av.error import FFmpegError

        try:
            return self._walk(wanted, seek=True)
        except (_Disagreement, _Damage, FFmpegError):  # a seek that landed badly, or a fault of the file
            pass
        try:
            return self._walk(wanted, seek=False)
        except _Disagreement:
            return self._by_number(wanted)

    def _walk(self, wanted: list[int], seek: bool) -> dict[int, np.ndarray]:
        """Frames by number. What they may be predicted from is checked too, so some frames past each are decoded."""
        found: dict[int, np.ndarray] = {}
        asked, last = set(wanted), len(self._stamps) - 1
        with self._open() as (file, stream):
            frames, position = self._checked(decoded(file.demux(stream), bool(self._keys)), self._stamps[0]), -1
            for number in wanted:
                at = bisect.bisect_right(self._keys, [self._stamps[number], 2**63]) - 1
                if seek and at > 0 and (position < 0 or self._keys[at][0] > self._stamps[position]):
                    frames = self._checked(self._sought(file, stream, *self._keys[at]), self._keys[at][0])
                while position < min(number + self._index.reorder, last):
                    position, frame = next(frames)
                    if position in asked:
                        found[position] = upright(frame.to_ndarray(format="rgb24"), self._index.header)
        return found

    def _checked(self, frames: Iterator[Any], key: int) -> Iterator[tuple[int, Any]]:
        """Frames with their numbers from the one at stamp `key` on: none missing, none damaged, none unknown."""
        total = len(self._stamps)
        number = start = bisect.bisect_left(self._stamps, key)
        for frame in frames:
            if frame.pts is None:
                raise _Disagreement("frames come out without a time")
            if number < total and number == start and frame.pts < self._stamps[start]:
                continue  # leads the key frame, or is of a group before it
            if number == total or frame.pts != self._stamps[number]:
                at = (frame.pts - self._stamps[0]) * self._index.unit
                raise _Disagreement(f"a frame comes out at {at:.3f} s in place of frame {number} of {total}")
            if frame.is_corrupt:
                raise _Damage(f"frame {number} of {total} is damaged")
            yield number, frame
            number += 1
        raise _Disagreement(f"frame {number} of {total} cannot be decoded")

    @staticmethod
    def _sought(file: Any, stream: Any, pts: int, dts: int) -> Iterator[Any]:
        """Frames decoded from the key frame at `pts`, or from one before it. Some demuxers seek by decoding time."""
        for target in (pts, dts):
            file.seek(target, stream=stream)
            packets = file.demux(stream)
            packet = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            if packet is not None and packet.pts <= pts:
                yield from decoded(chain([packet], packets))
                return
        raise _Disagreement("a seek finds no key frame")

    def _by_number(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Decode all, in the order of showing; as many frames must come out as packets went in."""
        found: dict[int, np.ndarray] = {}
        number, total, asked = -1, len(self._stamps), set(wanted)
        with self._open() as (file, stream):
            for number, frame in enumerate(decoded(file.demux(stream), bool(self._keys))):
                if frame.is_corrupt:
                    raise _Damage(f"frame {number} of {total} is damaged")
                if number in asked:
                    found[number] = upright(frame.to_ndarray(format="rgb24"), self._index.header)
        if number + 1 != total:
            raise ReaderError(f"{number + 1} frames can be decoded where its packets are {total}")
        return found

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        header = self._index.header
        with open_video(self._path, header.container, header.probe) as (file, stream):
            if header.codec in _QUIET_CODECS:
                stream.codec_context.options = _LOUD
            yield file, stream


class DecordReader:
    def __init__(self, path: Path, index: FrameIndex):
        import decord

        header = index.header
        if set(str(path)) & set("%*?[{"):
            raise ReaderError("it takes the name for a pattern")
        _refuse_turned(header)
        if header.container not in ("mov", "matroska"):
            raise ReaderError(f"its seeks are not exact in this container ({header.container})")
        if index.leading:
            raise ReaderError("miscounts open groups of pictures after a seek")
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
            times = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0].astype(np.float64)
            keys = len(self._reader.get_key_indices())
        except (RuntimeError, IndexError, decord.DECORDError) as error:
            raise ReaderError(_last_line(error)) from None
        _compare(times - times[:1], index, tolerance=2e-3 + 1e-6 * index.times[-1])
        if keys != len(index.keys):
            raise ReaderError(f"finds {keys} key frames where the packets have {len(index.keys)}")
        self._witness = PyAVReader(path, index)

    def pixels(self, indices: list[int]) -> np.ndarray:
        import decord

        try:
            frames = self._reader.get_batch(indices).asnumpy()
        except (RuntimeError, IndexError, decord.DECORDError) as error:
            raise ReaderError(_last_line(error)) from None
        for index, frame, right in zip(indices, frames, self._witness.pixels(indices), strict=True):
            if frame.shape != right.shape or np.abs(frame.astype(np.int16) - right).mean() > _ROUNDING:
                raise ReaderError(f"returns another frame than {index}")
        return frames


class TorchCodecReader:
    def __init__(self, path: Path, index: FrameIndex):
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        _refuse_turned(index.header)
        if index.numbered:
            raise ReaderError("the stamps of its packets are not those of its frames")
        try:
            self._decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise ReaderError(_last_line(error)) from None
        self._index = index
        if len(self._decoder) != len(index.stamps):
            raise ReaderError(f"finds {len(self._decoder)} frames where the packets are {len(index.stamps)}")

    def pixels(self, indices: list[int]) -> np.ndarray:
        try:
            batch = self._decoder.get_frames_at(indices=indices)
        except (RuntimeError, IndexError) as error:
            raise ReaderError(_last_line(error)) from None
        expected = self._index.stamps[indices] * self._index.unit
        if np.abs(batch.pts_seconds.numpy() - expected).max() > self._index.unit:
            raise ReaderError("returns frames of other times than those of the packets")
        return batch.data.permute(0, 2, 3, 1).numpy()


_READERS: dict[str, Callable[[Path, FrameIndex], Reader]] = {
    "pyav": PyAVReader,
    "decord": DecordReader,
    "torchcodec": TorchCodecReader,
}


def _refuse_turned(header: Header) -> None:
    if header.rotation or header.mirrored:
        raise ReaderError(f"misreads a rotation by {header.rotation} degrees{' of a mirror image' * header.mirrored}")


def _compare(times: np.ndarray, index: FrameIndex, tolerance: float) -> None:
    """Times (N,) in seconds as a reader finds them, with those of the packets."""
    if len(times) != len(index.stamps):
        raise ReaderError(f"finds {len(times)} frames where the packets are {len(index.stamps)}")
    off = np.abs(times - index.times)
    if off.max() > tolerance:
        worst = int(off.argmax())
        raise ReaderError(f"has frame {worst} at {times[worst]:.3f} s, its packet at {index.times[worst]:.3f} s")


def upright(frame: np.ndarray, header: Header) -> np.ndarray:
    """(H, W, 3) mirrored and turned as the container asks players to show it."""
    turns, rest = divmod(header.rotation, 90)
    if rest:
        raise ReaderError(f"rotation by {header.rotation} degrees is not a multiple of 90")
    return np.rot90(frame[:, ::-1] if header.mirrored else frame, turns)


def _last_line(error: Exception) -> str:
    """decord's messages end in a stack trace; the sentence before it says why."""
    text = str(error).split("Stack trace")[0].strip()
    return text.splitlines()[-1].split(": ", 1)[-1] if text else type(error).__name__
