"""Content-addressed cache of decoded frames: one memory-mapped safetensors file a clip.

A file holds `pixels` (F, 3, H, W) uint8, after sampling and resize, and in its metadata what describes them
and a sha256 over both and the shape. It is written under a temporary name, synced, and renamed, so that readers take no
lock and two writers of one key leave one valid file. Its name is the sha256 of everything the frames depend
on: path, size and mtime of the source (or its content), start and end, every field of `VideoSampling`, the
reader with its version, the version of this format. Beside the clips lie the indexes of the packets of their
files (`*.index`, see `frame_index`). Idea: EasyVideoR1 (arXiv 2604.16893), whose key lacks the file's identity
and the reader, so that a changed file is served stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from mmrl.data import frame_index
from mmrl.errors import ConfigError, DataError, StorageError
from mmrl.media import Clip, Frames, VideoSampling
from mmrl.shown import one_line, tell

FORMAT = 3  # 1 held frames as decord gave them, unchecked; the checksum of 2 did not cover the shape
Identity = Literal["stat", "content"]
_STALE_SECONDS = 3600
LONGEST_REASON = 120


def default_root() -> Path:
    """`$MMRL_CACHE`, or `mmrl` in the cache folder of the platform."""
    if os.environ.get("MMRL_CACHE"):
        return Path(os.environ["MMRL_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "mmrl"


@lru_cache(maxsize=4096)
def _content_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_identity(path: str | Path, identity: Identity = "stat") -> list[Any]:
    """What tells one source file from another: its place, size and time, or its content alone."""
    path = Path(path).resolve()
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if identity == "content":
        return [_content_hash(str(path), stat.st_size, stat.st_mtime_ns)]
    return [str(path), stat.st_size, stat.st_mtime_ns]


def clip_key(
    paths: Sequence[str | Path],
    sampling: VideoSampling,
    backend: str,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    identity: Identity = "stat",
) -> str:
    """Content address of sampled frames, 64 hex digits. `paths`: one video, or frame images shown at `fps`."""
    parts = {
        "format": FORMAT,
        "source": [file_identity(p, identity) for p in paths],
        "start": start,
        "end": end,
        "fps": fps,
        "sampling": sampling.model_dump(),
        "backend": backend,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CorruptEntry(Exception):
    """A frame file that is cut short, damaged, or not what its name says."""


def _checksum(pixels: Tensor, described: str) -> str:
    digest = hashlib.sha256(f"{tuple(pixels.shape)} {described}".encode())
    digest.update(pixels.numpy().data.cast("B") if pixels.numel() else b"")
    return digest.hexdigest()


def write_frames(path: Path, frames: Frames) -> None:
    """Write and sync. The caller renames: until then the file does not exist for any reader.

    Raises StorageError where the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    pixels = frames.pixels.contiguous()
    described = json.dumps({k: v for k, v in vars(frames).items() if k != "pixels"}, sort_keys=True)
    metadata = {"frames": described, "sha256": _checksum(pixels, described)}
    try:
        save_file({"pixels": pixels}, path, metadata=metadata)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read_frames(path: Path, *, verify: bool) -> Frames:
    """Map a frame file into memory; `verify` reads it all and compares checksums.

    The file is opened once: `safetensors.safe_open` opens it twice, so that a rename in between mixes the
    description of one file with the pixels of another.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise CorruptEntry(f"{path}: is not a file")
    with _opened(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            start = 8 + int.from_bytes(mapped[:8], "little")
            header = json.loads(mapped[8:start])
            stored, metadata = header["pixels"], header["__metadata__"]
            if stored["dtype"] != "U8" or stored["data_offsets"] != [0, len(mapped) - start]:
                raise ValueError(f"{len(mapped)} bytes, the header describes others")
            pixels = torch.frombuffer(mapped, dtype=torch.uint8, offset=start).view(stored["shape"])
            fields = json.loads(metadata["frames"])
            frames = Frames(**{**fields, "size": tuple(fields["size"])}, pixels=pixels)
            _check_described(frames, stored["shape"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise CorruptEntry(f"{path}: {one_line(str(error))[:LONGEST_REASON]}") from None
    if verify and _checksum(pixels, metadata["frames"]) != metadata.get("sha256"):
        raise CorruptEntry(f"{path}: checksum differs")
    return frames


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptEntry(f"{path}: {error.strerror}") from None
    with file:
        yield file


def _check_described(frames: Frames, given: list[int]) -> None:
    """ValueError for a description that is not one of these pixels: its checksum may have been forged along."""
    shape, count = tuple(frames.pixels.shape), len(frames.indices)
    numbers = [*frames.indices, frames.fps, frames.total_frames, *frames.size]
    if list(shape) != given or len(shape) != 4 or shape[:2] != (count, 3) or 0 in shape or len(frames.size) != 2:
        raise ValueError(f"pixels of shape {given} for {count} frames")
    if not all(isinstance(n, int | float) and 0 <= n < float("inf") for n in numbers) or not frames.fps:
        raise ValueError("what describes its frames is not numbers")


@dataclass
class CacheReport:
    """What `verify` or `prune` found and did; `removed` counts clips, `bytes` is what is left, indexes included.
    `kept`: files that the disk does not let go."""

    entries: int
    bytes: int
    corrupt: int = 0
    removed: int = 0
    kept: int = 0

    def __str__(self) -> str:
        kept = f"; {self.kept} files could not be removed" if self.kept else ""
        size = self.bytes / 2**20
        return f"{self.entries} entries, {size:.1f} MiB; {self.corrupt} corrupt, {self.removed} removed{kept}"


class VideoCache:
    """Frames of clips on disk, and the last ones used mapped in memory.

    root          folder, shared freely by processes of one machine; `default_root()` / "frames" if not given
    budget_bytes  least recently used entries go when the folder grows past it; None: no limit
    identity      "stat" tells files by path, size and mtime; "content" by sha256 of the file, which survives
                  moving and copying and costs one read of each file a process
    mapped        how many entries each process keeps mapped (address space, not memory)
    counts        hits, misses, corrupt, written, evicted of this process, and refused: frames that a full or
                  read-only disk did not take, which are used and not kept

    Raises ConfigError where `root` cannot be a folder.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        budget_bytes: int | None = None,
        *,
        identity: Identity = "stat",
        mapped: int = 64,
    ):
        self.root = Path(root).expanduser() if root is not None else default_root() / "frames"
        self.budget_bytes = budget_bytes
        self.identity: Identity = identity
        self.counts: Counter[str] = Counter()
        self._mapped: OrderedDict[str, tuple[Frames, int]] = OrderedDict()  # and the bytes of the file
        self._limit = mapped
        self._verified: set[str] = set()
        self._unswept: int | None = None  # bytes written since the folder was last measured
        self._lock = threading.Lock()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cache.root={self.root}: {error.strerror}; name another folder, or set cache.enabled=false"
            ) from None

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"

    def key(self, paths: Sequence[str | Path], sampling: VideoSampling, backend: str, **part) -> str:
        """`clip_key` with this cache's way to tell files apart."""
        return clip_key(paths, sampling, backend, identity=self.identity, **part)

    def index_path(self, path: str | Path) -> Path:
        """Where the index of a file's packets lies, or will."""
        parts = {"format": frame_index.FORMAT, "av": version("av"), "source": file_identity(path, self.identity)}
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self.root / name[:2] / f"{name}.index"

    def get(self, keys: Sequence[str]) -> Frames | None:
        """Frames under the first of `keys` that is stored intact; counts one hit or one miss."""
        for key in keys:
            frames = self._load(key)
            if frames is not None:
                self._count("hits")
                return frames
        self._count("misses")
        return None

    def _load(self, key: str) -> Frames | None:
        path = self.path(key)
        if (frames := self._still_mapped(key, path)) is not None:
            return frames
        try:
            frames = read_frames(path, verify=key not in self._verified)
            if frames.key != key:
                raise CorruptEntry(f"{path}: holds {frames.key}")
        except FileNotFoundError:
            return None
        except CorruptEntry as error:
            self._count("corrupt")
            self._forget(key)
            if not _removed(path):
                self.refuse(str(error))
            return None
        self._touch(path)
        with self._lock:
            self._verified.add(key)
            self._mapped[key] = frames, _size_of(path)
            while len(self._mapped) > self._limit:
                self._mapped.popitem(last=False)
        return frames

    def _still_mapped(self, key: str, path: Path) -> Frames | None:
        """Frames mapped before, unless their file has been cut since: to touch what it lost would end the process."""
        with self._lock:
            if key not in self._mapped:
                return None
            frames, size = self._mapped[key]
            if path.exists() and _size_of(path) != size:  # one that was evicted stays whole until nobody maps it
                del self._mapped[key]
                self._verified.discard(key)
                return None
            self._mapped.move_to_end(key)
        self._touch(path)
        return frames

    def refuse(self, why: str) -> None:
        """Frames are used and not kept, because the disk does not take them; said once."""
        with self._lock:
            first = not self.counts["refused"]
            self.counts["refused"] += 1
        if first:
            tell(f"the cache of frames cannot be written ({why}): clips are decoded anew each time")

    def _forget(self, key: str) -> None:
        with self._lock:
            self._mapped.pop(key, None)
            self._verified.discard(key)

    @staticmethod
    def _touch(path: Path) -> None:
        with contextlib.suppress(OSError):  # evicted by another process (the mapping stays valid), or read-only
            os.utime(path)  # mtime of an entry = when it was last used

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def temporary(self) -> Path:
        """A name in the cache's own file system, for `commit` to rename."""
        return self.root / f"{uuid.uuid4().hex}.{os.getpid()}.tmp"

    def commit(self, temporary: Path, key: str) -> Frames:
        """Give a written and synced file its name, and map it. The last of several writers wins.

        Raises StorageError where the disk refuses.
        """
        final = self.path(key)
        try:
            final.parent.mkdir(exist_ok=True)
            size = temporary.stat().st_size
            os.replace(temporary, final)
        except OSError as error:
            raise StorageError(f"{final}: {error.strerror}") from None
        self._count("written")
        self._forget(key)
        frames = self._load(key)  # mapped before the sweep, so that it outlives its own eviction
        if frames is None:
            raise DataError(f"{final}: written but not readable; is the disk full?")
        self._sweep(size)
        return frames

    def put(self, frames: Frames) -> Frames:
        """Store frames under their own key; returns them mapped from the file, or as they are where the disk does not
        take them."""
        temporary = self.temporary()
        try:
            write_frames(temporary, frames)
            return self.commit(temporary, frames.key)
        except StorageError as error:
            self.refuse(str(error))
            return frames
        finally:
            _removed(temporary)

    def _sweep(self, written: int) -> None:
        """Prune when the folder may have outgrown the budget, measuring it only now and then."""
        if self.budget_bytes is None:
            return
        with self._lock:
            self._unswept = None if self._unswept is None else self._unswept + written
            due = self._unswept is None or self._unswept > self.budget_bytes // 20
            self._unswept = 0 if due else self._unswept
        if due:
            self._count("evicted", self.prune(self.budget_bytes).removed)

    def _entries(self, kind: str = "safetensors") -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.root.glob(f"??/*.{kind}"):
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue  # removed by another process

    def prune(self, budget_bytes: int) -> CacheReport:
        """Remove least recently used entries until at most `budget_bytes` are left, and stale temporaries."""
        for leftover in self.root.rglob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    _removed(leftover)
        clips, indexes = list(self._entries()), list(self._entries("index"))
        files = sorted([*clips, *indexes], key=lambda e: e[1].st_mtime_ns)
        report = CacheReport(entries=len(clips), bytes=sum(s.st_size for _, s in files))
        for path, stat in files:
            if report.bytes <= budget_bytes:
                break
            if not _removed(path):
                report.kept += 1
                continue
            report.bytes -= stat.st_size
            if path.suffix == ".safetensors":
                self._forget(path.stem)
                report.entries -= 1
                report.removed += 1
        return report

    def verify(self, *, remove: bool = True) -> CacheReport:
        """Read every entry and compare checksums; damaged ones are removed, to be made again when asked for."""
        report = CacheReport(entries=0, bytes=0)
        for path, stat in self._entries("index"):
            if frame_index.FrameIndex.load(path) is not None:
                report.bytes += stat.st_size
            elif remove:
                report.kept += not _removed(path)
        for path, stat in self._entries():
            try:
                sound = read_frames(path, verify=True).key == path.stem
            except FileNotFoundError:
                continue
            except CorruptEntry:
                sound = False
            if sound:
                report.entries += 1
                report.bytes += stat.st_size
                continue
            report.corrupt += 1
            if remove:
                gone = _removed(path)
                report.removed, report.kept = report.removed + gone, report.kept + (not gone)
        self._count("corrupt", report.corrupt)
        return report

    def build(
        self, clips: Iterable[Clip | str | Path], sampling: VideoSampling, workers: int = 2, **options
    ) -> BuildReport:
        """Decode clips that are not stored yet; unreadable ones are reported, not raised."""
        from mmrl.data.video import prefetch

        clips, before, failed = list(clips), Counter(self.counts), {}
        for clip, result in prefetch(clips, sampling, workers, **{**options, "cache": self}):
            if isinstance(result, DataError):
                failed[str(getattr(clip, "path", clip))] = str(result)
        new = self.counts - before
        return BuildReport(clips=len(clips), written=new["written"], found=new["hits"], failed=failed)


def _removed(path: Path) -> bool:
    """Delete a file; False where the disk keeps it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass
class BuildReport:
    """clips asked for = written now + found already + failed {path: cause}, duplicates aside."""

    clips: int
    written: int
    found: int
    failed: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.clips} clips: {self.written} decoded, {self.found} found, {len(self.failed)} failed"]
        return "\n".join([*lines, *(f"  {cause}" for cause in self.failed.values())])


def as_metrics(cache: VideoCache) -> dict[str, float]:
    """`{"cache/hits": ..., "cache/hit_rate": ...}` for the metrics file."""
    asked = cache.counts["hits"] + cache.counts["misses"]
    rate = {"cache/hit_rate": cache.counts["hits"] / asked} if asked else {}
    return {f"cache/{k}": float(v) for k, v in sorted(cache.counts.items())} | rate
