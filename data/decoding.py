"""Video files to frames: index, budgets, a reader, resize.

Runs in a decoder process (`mmrl.data.decoder_process`) or, for trusted files, in the caller's.

Traps, each with a test:
- Playlists (m3u8, ffconcat) make FFmpeg open other files and addresses, and so do patterns in names: the container is
  told by its first bytes and FFmpeg is given its demuxer (`containers`).
- What a container promises and what it holds differ, and readers return other frames than asked for: everything is
  held to the packets (`frame_index`), and what disagrees is refused (`readers`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmrl.data.frame_index import DecodeLimits, FrameIndex, frame_index, timeline
from mmrl.data.readers import ReaderError, open_reader, reader_of
from mmrl.data.sampling import clip_range, frame_count, frame_size, spread
from mmrl.errors import DataError
from mmrl.media import VideoSampling

_CHUNK_BYTES = 256 * 2**20


@dataclass
class Decoded:
    """`pixels` (F, 3, H, W) uint8 and the fields of `mmrl.media.Frames` that describe them."""

    pixels: Tensor
    indices: list[int]
    fps: float
    total_frames: int
    size: tuple[int, int]
    backend: str


def resize(frames: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """(F, 3, H, W) uint8 to `size`: float32, antialiased, rounded; the numbers of torchvision's tensor resize."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    smooth = interpolation != "nearest"
    out = torch.nn.functional.interpolate(
        frames.float(), size, mode=interpolation, antialias=smooth, align_corners=False if smooth else None
    )
    return out.clamp_(0, 255).round_().to(torch.uint8)


def choose_slots(
    index: FrameIndex, sampling: VideoSampling, start: float | None, end: float | None
) -> tuple[list[int], list[int], float, int]:
    """Slots evenly spread over the clip, the frame on screen in each, slots a second, and slots of the clip.

    The frames of a clip that starts at `start` begin with the first one shown then or later.
    """
    line = timeline(index.times, index.header.fps, index.unit)
    first, last = clip_range(line.total, line.fps, start, end, line.slack)
    shown = line.frames([first, last])
    count = frame_count(last - first + 1, line.fps, sampling, most=shown[1] - shown[0] + 1)
    slots = spread(first, last, count)
    return slots, line.frames(slots), line.fps, last - first + 1


def decode(
    path: Path,
    sampling: VideoSampling,
    start: float | None = None,
    end: float | None = None,
    limits: DecodeLimits | None = None,
    stored: Path | None = None,
) -> Decoded:
    """Sampled and resized frames of a file, by the reader of `sampling.backend`.

    stored  where the file's index lies or is to lie

    Raises DataError naming the file and the cause.
    """
    limits = limits or DecodeLimits()
    name, identity = reader_of(sampling.backend)
    index = frame_index(path, limits, stored)
    header = index.header
    try:
        slots, frames, fps, total = choose_slots(index, sampling, start, end)
        size = frame_size(header.height, header.width, len(slots), sampling)
        needed = len(slots) * 3 * size[0] * size[1]
        if needed > limits.max_output_bytes:
            raise DataError(f"{needed:,} bytes of frames, the limit is {limits.max_output_bytes:,}")
        pixels = _read(path, index, name, frames, size, sampling.interpolation)
    except ReaderError as error:
        other = "; backend auto may read it" if name != "pyav" else ""
        raise DataError(f"{path}: cannot be read ({header.codec}) by {name}: {error}{other}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return Decoded(pixels, slots, fps, total, (header.height, header.width), identity)


def _read(path: Path, index: FrameIndex, name: str, frames: list[int], size: tuple[int, int], how: str) -> Tensor:
    reader, shape = open_reader(path, index, name), (index.header.height, index.header.width, 3)
    step = max(1, _CHUNK_BYTES // math.prod(shape))
    parts = []
    for at in range(0, len(frames), step):
        chunk = reader.pixels(frames[at : at + step])
        if chunk.shape[1:] != shape:
            raise ReaderError(f"frames came as {chunk.shape[1:]}, the first is {shape}")
        upright_chw = torch.from_numpy(np.ascontiguousarray(chunk)).permute(0, 3, 1, 2)
        parts.append(resize(upright_chw, size, how))
    return torch.cat(parts).contiguous()
