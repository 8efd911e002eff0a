"""Clips to frames: the one way the toolkit reads video, through decoder processes and the cache.

    frames = read_clip(Clip(path, start=2.0, end=7.5), VideoSampling(fps=2), cache=VideoCache())

`counts` of this module says what happened in this process: clips decoded, failures, decoders that died.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrl.data.cache import VideoCache, clip_key, read_frames
from mmrl.data.decoder_process import clip_request, decode_apart
from mmrl.data.decoding import decode, resize
from mmrl.data.frame_index import DecodeLimits, check_container
from mmrl.data.images import open_image
from mmrl.data.readers import reader_of
from mmrl.data.sampling import choose_frames, frame_size
from mmrl.errors import ConfigError, DataError, StorageError
from mmrl.media import Clip, FrameList, Frames, VideoSampling

counts: Counter[str] = Counter()
"""`decoded`, `decoded/pyav` (by reader), `failed`, and `decoder/restarted` for each clip tried again after a decoder
died."""

_lock = threading.Lock()
Source = Clip | FrameList | str | Path | Sequence[str | Path]


def _count(what: str) -> None:
    with _lock:
        counts[what] += 1


def as_clip(source: Source) -> Clip | FrameList:
    """A path is a whole clip; a list of paths is a clip given as frame images."""
    if isinstance(source, Clip | FrameList):
        return source
    if isinstance(source, str | Path):
        return Clip(Path(source))
    return FrameList(tuple(Path(p) for p in source))


def read_clip(
    clip: Source,
    sampling: VideoSampling,
    *,
    cache: VideoCache | None = None,
    limits: DecodeLimits | None = None,
    isolate: bool = True,
) -> Frames:
    """Sampled, resized frames of a clip: (F, 3, H, W) uint8, memory-mapped when they come from the cache.

    isolate  decode in a decoder process with time limit (default), or in this one: faster for a few trusted
             files, but a hostile file can then crash or hang the run

    Raises DataError naming the file and the cause.
    """
    limits = limits or DecodeLimits()
    clip = as_clip(clip)
    sampling = own_sampling(clip, sampling)
    if isinstance(clip, FrameList):
        return _read_frame_list(clip, sampling, cache)
    check_container(clip.path, limits)
    make = cache.key if cache is not None else clip_key
    _, reader = reader_of(sampling.backend)
    key = make([clip.path], sampling, reader, start=clip.start, end=clip.end)
    if cache is not None and (stored := cache.get([key])):
        return stored
    try:
        frames = (_decode_apart if isolate else _decode_here)(clip, sampling, cache, limits, key)
    except DataError:
        _count("failed")
        raise
    _count("decoded")
    _count(f"decoded/{frames.backend.split()[0]}")
    return frames


def own_sampling(clip: Clip | FrameList, sampling: VideoSampling) -> VideoSampling:
    """`sampling` with what the clip asks for itself. Raises DataError where the two do not fit together."""
    try:
        return clip.asks.over(sampling)
    except ConfigError as error:
        path = clip.path if isinstance(clip, Clip) else clip.paths[0]
        raise DataError(f"{path}: the clip's own limits and the run's do not fit together: {error}") from None


def _index_file(clip: Clip, cache: VideoCache | None) -> Path | None:
    return cache.index_path(clip.path) if cache is not None else None


def _decode_here(clip: Clip, sampling, cache: VideoCache | None, limits, key: str) -> Frames:
    made = decode(clip.path, sampling, clip.start, clip.end, limits, _index_file(clip, cache))
    frames = Frames(**vars(made), key=key)
    return frames if cache is None else cache.put(frames)


def _decode_apart(clip: Clip, sampling, cache: VideoCache | None, limits, key: str) -> Frames:
    if cache is not None and (frames := _into_cache(clip, sampling, cache, limits, key)) is not None:
        return frames
    output = _shared_memory_file()
    try:
        _request(clip, sampling, cache, limits, key, output)
        return read_frames(output, verify=False)  # the mapping outlives the name
    finally:
        output.unlink(missing_ok=True)


def _into_cache(clip: Clip, sampling, cache: VideoCache, limits, key: str) -> Frames | None:
    """Frames mapped from the cache, once they are decoded into it; None where the disk does not take them."""
    if not os.access(cache.root, os.W_OK):
        cache.refuse(f"{cache.root} is read-only")
        return None
    output = cache.temporary()
    try:
        _request(clip, sampling, cache, limits, key, output)
        return cache.commit(output, key)
    except StorageError as error:
        cache.refuse(str(error))
        return None
    finally:
        with suppress(OSError):
            output.unlink(missing_ok=True)


def _request(clip: Clip, sampling, cache: VideoCache | None, limits, key: str, output: Path) -> None:
    request = clip_request(clip.path, sampling, clip.start, clip.end, limits, output, key, _index_file(clip, cache))
    decode_apart(request, limits.timeout, on_restart=lambda: _count("decoder/restarted"))


def _shared_memory_file() -> Path:
    memory = Path("/dev/shm")
    folder = memory if memory.is_dir() else None
    with tempfile.NamedTemporaryFile(prefix="mmrl-", suffix=".frames", dir=folder, delete=False) as file:
        return Path(file.name)


def _read_frame_list(clip: FrameList, sampling: VideoSampling, cache: VideoCache | None) -> Frames:
    """Frame images in order, all of one size, sampled like the frames of a file at `clip.fps`."""
    if not clip.paths:
        raise DataError("a clip given as frame images has no image")
    backend = "images"
    make = cache.key if cache is not None else clip_key
    key = make(clip.paths, sampling, backend, fps=clip.fps)
    if cache is not None and (stored := cache.get([key])):
        return stored
    try:
        indices, total = choose_frames(len(clip.paths), clip.fps, sampling)
    except DataError as error:
        raise DataError(f"{clip.paths[0]} and the frames after it: {error}") from None
    images = [np.asarray(open_image(clip.paths[i])) for i in indices]
    height, width = images[0].shape[:2]
    for i, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(f"{clip.paths[i]}: is {found}, but the frame {clip.paths[indices[0]]} is {width}x{height}")
    size = frame_size(height, width, len(indices), sampling)
    pixels = resize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), size, sampling.interpolation)
    frames = Frames(pixels.contiguous(), indices, clip.fps, total, (height, width), backend, key)
    _count("decoded")
    return frames if cache is None else cache.put(frames)


def prefetch(
    clips: Iterable[Source],
    sampling: VideoSampling,
    workers: int = 2,
    *,
    cache: VideoCache | None = None,
    limits: DecodeLimits | None = None,
    isolate: bool = True,
    ahead: int | None = None,
) -> Iterator[tuple[Source, Frames | DataError]]:
    """Decode ahead of the caller: yields each clip with its frames, or with why it has none, in order.

    workers  decoder processes at work at once
    ahead    clips decoded or waiting to be taken, at most; default 2 x workers. Frames of waiting clips take
             memory unless a cache holds them
    """
    ahead = ahead or 2 * workers

    def read(clip: Source) -> Frames | DataError:
        try:
            return read_clip(clip, sampling, cache=cache, limits=limits, isolate=isolate)
        except DataError as error:
            return error

    pending: deque[tuple[Source, Future[Any]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        try:
            for clip in clips:
                pending.append((clip, threads.submit(read, clip)))
                if len(pending) >= ahead:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()
