"""Which frames of a clip are read, and at which size: the arithmetic of qwen-vl-utils, without its imports.

Source: `smart_nframes`, `calculate_video_frame_range`, `smart_resize` and `fetch_video` of qwen-vl-utils
0.0.14. The tests compare with those functions over random inputs; what differs is listed here.
- `frame_multiple` may be any number (there: 2).
- `fps=None` asks for `max_frames` frames, or as many as the clip has (there: an error when it has fewer).
- A `max_pixels` above 768 x factor^2 is kept (there: lowered with a warning), and `total_pixels=None` means
  no budget (there: 115,200 x factor^2).
"""

from __future__ import annotations

import math

import torch

from mmrl.errors import ConfigError, DataError
from mmrl.media import VideoSampling

MAX_ASPECT = 200


def clip_range(total: int, fps: float, start: float | None, end: float | None, slack: float = 1e-6) -> tuple[int, int]:
    """First and last frame between `start` and `end` seconds; an `end` past the last frame means to the end.

    slack  seconds that a frame may be shown before or after k / fps and still be frame k: 0.28 s is frame 7 of 25 a
           second, although 0.28 * 25 > 7 in floats
    """
    duration = total / fps
    if start is not None and not 0 <= start < duration:
        raise DataError(f"start={start:g} s is outside the video, which lasts {duration:.2f} s")
    if end is not None and not end >= 0:
        raise DataError(f"end={end:g} s is outside the video, which lasts {duration:.2f} s")
    first = max(math.ceil((start - slack) * fps), 0) if start is not None else 0
    last = min(math.floor((min(end, duration) + slack) * fps), total - 1) if end is not None else total - 1
    if first > last:
        raise DataError(f"no frame between start={start} s and end={end} s ({total} frames at {fps:.3f} fps)")
    return first, last


def frame_count(total: int, fps: float, sampling: VideoSampling, most: int | None = None) -> int:
    """How many of `total` frames are read: `fps` asked for, within min and max, down to `frame_multiple`.

    Where `min_frames` and `max_frames` contradict each other, `max_frames` wins. `most`: frames that there are, where
    `total` counts slots of time.
    """
    multiple = sampling.frame_multiple
    low = math.ceil(sampling.min_frames / multiple) * multiple
    high = sampling.max_frames // multiple * multiple
    most = total if most is None else most
    if high < multiple:
        raise ConfigError(f"max_frames={sampling.max_frames} is below frame_multiple={multiple}")
    asked = high if sampling.fps is None else total / fps * sampling.fps
    count = math.floor(min(max(asked, low), high, most) / multiple) * multiple
    if count < multiple:
        raise DataError(f"holds {most} frame(s), needs at least {multiple} (frame_multiple)")
    return count


def spread(first: int, last: int, count: int) -> list[int]:
    """`count` frame numbers, evenly from `first` to `last`."""
    return torch.linspace(first, last, count).round().long().tolist()


def choose_frames(
    total: int, fps: float, sampling: VideoSampling, start: float | None = None, end: float | None = None
) -> tuple[list[int], int]:
    """Absolute frame numbers, evenly spread over the clip, and how many frames the clip has."""
    first, last = clip_range(total, fps, start, end)
    return spread(first, last, frame_count(last - first + 1, fps, sampling)), last - first + 1


def resized(height: int, width: int, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Nearest size of about the same shape: sides multiples of `factor`, area within the two bounds.

    >>> resized(480, 640, 28, 3136, 65536)
    (196, 280)
    """
    if max_pixels < min_pixels:
        raise ConfigError(f"max_pixels={max_pixels:g} is below min_pixels={min_pixels:g}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError(f"frames of {width}x{height} are more than {MAX_ASPECT} times longer than wide")
    high = max(factor, round(height / factor) * factor)
    wide = max(factor, round(width / factor) * factor)
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = math.floor(height / shrink / factor) * factor
        wide = math.floor(width / shrink / factor) * factor
        if min(high, wide) < factor:
            raise DataError(f"frames of {width}x{height} do not fit max_pixels={max_pixels:g} at factor {factor}")
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def frame_size(height: int, width: int, count: int, sampling: VideoSampling) -> tuple[int, int]:
    """(height, width) of each of `count` frames; `total_pixels` counts one frame of each temporal patch."""
    max_pixels: float = sampling.max_pixels
    if sampling.total_pixels is not None:
        share = sampling.total_pixels / count * sampling.frame_multiple
        max_pixels = min(max_pixels, max(share, int(sampling.min_pixels * 1.05)))
    return resized(height, width, sampling.factor, sampling.min_pixels, max_pixels)
