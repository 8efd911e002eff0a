"""Entries of the frame cache that someone cut, forged or replaced, on a disk that takes new ones and on one that does
not: the frames come out right."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmrl.data.cache import VideoCache
from mmrl.data.video import read_clip
from mmrl.media import Frames, VideoSampling
from tests.chaos.trials import Tally, in_child
from tests.data.clips import write_clip

SAMPLING = VideoSampling(fps=None, min_frames=2, max_frames=4, min_pixels=784, max_pixels=4096)
NOBODY = 65534


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrites the header of a frame file; the pixels stay."""

    def forge(path: Path) -> None:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return forge


def _shape(shape: Any) -> Callable[[Path], None]:
    return _header(lambda header: header["pixels"].update(shape=shape))


def _described(**values: Any) -> Callable[[Path], None]:
    def change(header: dict[str, Any]) -> None:
        fields = json.loads(header["__metadata__"]["frames"])
        header["__metadata__"]["frames"] = json.dumps(fields | values, sort_keys=True)

    return _header(change)


def _other(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


DAMAGE: Mapping[str, Callable[[Path], Any]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2), "emptied": lambda path: os.truncate(path, 0),
    "a byte": lambda path: os.truncate(path, 1), "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": Path.unlink, "a folder": _other(Path.mkdir), "a pipe": _other(os.mkfifo),
    "a dangling link": _other(lambda path: path.symlink_to("/nowhere")),
    "a link elsewhere": _other(lambda path: path.symlink_to("/etc/passwd")),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "header too long": lambda path: path.write_bytes((2**63).to_bytes(8, "little") + b"x" * 100),
    "header nested": lambda path: path.write_bytes((9 * 10**4).to_bytes(8, "little") + b"[" * 9 * 10**4),
    "sides swapped": _header(lambda h: h["pixels"].update(shape=[*h["pixels"]["shape"][:2], 84, 28])),
    "flat": _shape([-1]), "no shape": _shape([]), "negative": _shape([-1, 3, 28, 84]), "huge": _shape([10**30, 3, 1]),
    "shape of text": _shape("4"), "offsets": _header(lambda h: h["pixels"]["data_offsets"].__setitem__(0, 9)),
    "another type": _header(lambda h: h["pixels"].update(dtype="F32")),
    "metadata a list": _header(lambda h: h.update(__metadata__=[1])), "indices of text": _described(indices="abcd"),
    "rate zero": _described(fps=0.0), "rate not a number": _described(fps=float("nan")), "side": _described(size=[1]),
    "another clip's": _described(key="0" * 64), "unknown field": _described(evil=1),
}  # fmt: skip
INDEX_DAMAGE: Mapping[str, Callable[[Path], Any]] = {
    "cut": DAMAGE["cut"], "text": lambda path: path.write_text("x"), "a folder": DAMAGE["a folder"],
    "a pipe": DAMAGE["a pipe"], "zeros": DAMAGE["zeros"],
}  # fmt: skip


def damaged(every: int = 1) -> list[Tally]:
    """Every so many of the damages, on a disk that takes new entries and on one that does not, and an entry that is cut
    while it is mapped."""
    with tempfile.TemporaryDirectory(prefix="mmrl-caches-") as root:
        Path(root).chmod(0o755)  # the read-only ones are read as somebody else
        return [_damaged(Path(root), every)]


def _damaged(folder: Path, every: int) -> Tally:
    clip = write_clip(folder / "clip.mp4", 24)
    good = read_clip(clip, SAMPLING, isolate=False)
    tally = Tally("a damaged or forged entry of the frame cache, the disk writable or not")
    trials = [("entry", name, damage, "safetensors") for name, damage in DAMAGE.items()]
    trials += [("index", name, damage, "index") for name, damage in INDEX_DAMAGE.items()]
    for number, (what, name, damage, ending) in list(enumerate(trials))[::every]:
        for writable in (True, False):
            root = folder / f"cache-{number}-{writable}"
            _read(clip, root)
            damage(next(root.glob(f"??/*.{ending}")))
            if ending == "index":
                next(root.glob("??/*.safetensors")).unlink()
            work, first = partial(_compare, clip, root, good), partial(_prepare, root, writable)
            ended = in_child(work, folder / "log", 20.0, first)
            problem = "" if ended.status == 0 else f"{ended.status}: {ended.said[-300:]}"
            if not writable and "cannot be written" not in ended.said:
                problem = problem or f"not said: {ended.said[-300:]}"
            tally.count(problem and f"{what} {name}, {'writable' if writable else 'read-only'}: {problem}")
    tally.count(_cut_while_mapped(clip, folder, good))
    return tally


def _read(clip: Path, root: Path) -> Frames:
    return read_clip(clip, SAMPLING, cache=VideoCache(root), isolate=False)


def _compare(clip: Path, root: Path, good: Frames) -> None:
    found = _read(clip, root)
    assert torch.equal(found.pixels, good.pixels) and found.indices == good.indices


def _prepare(root: Path, writable: bool) -> None:
    """A read-only disk, for root too: as somebody else, who may only read."""
    if writable:
        return
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


def _cut_while_mapped(clip: Path, folder: Path, good: Frames) -> str:
    """A file that loses its end while a process has it mapped ends that process, if it looks there."""

    def work() -> None:
        cache = VideoCache(folder / "mapped")
        read_clip(clip, SAMPLING, cache=cache, isolate=False)
        os.truncate(next((folder / "mapped").glob("??/*.safetensors")), 100)
        assert torch.equal(read_clip(clip, SAMPLING, cache=cache, isolate=False).pixels, good.pixels)

    ended = in_child(work, folder / "log", 20.0)
    return "" if ended.status == 0 else f"cut while mapped: {ended.status}: {ended.said[-300:]}"
