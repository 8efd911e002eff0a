"""Weights and moments on disk: safetensors through torch.distributed.checkpoint, each rank its own shards.

    trainable.safetensors, optimizer.safetensors                      where every rank holds everything
    trainable-00001-of-00002.safetensors, ...                         where the model is sharded: a file of each rank

Names are those of parameters, without any wrapper's prefix; moments are `NAME|exp_avg`. A file says where its pieces
belong, so other numbers of ranks read it. `.metadata`, which torch's default writer pickles, is never written.
"""

from __future__ import annotations

import json
import os
import queue
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from mmrl.errors import DataError
from mmrl.policies.sharding import is_sharded_tensor

WEIGHTS, MOMENTS = "trainable", "optimizer"
PART_BYTES = 4 * 2**30
"""A file larger than this is split: a part is serialised in memory before it is written."""


def write(folder: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> list[Path]:
    """Write both into an existing folder; returns the files of this rank. Every rank must call it; replicated tensors
    are written by the first. Equal tensors give equal bytes."""
    state = {**weights, **moments}
    files: dict[str, str] = {}
    for stem, tensors in ((WEIGHTS, weights), (MOMENTS, moments)):
        files |= _parts(stem, tensors)
    writer = _Writer(folder, files, any(map(is_sharded_tensor, state.values())))
    with _called():
        dcp.save(
            dict(state), storage_writer=writer, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
            no_dist=not _distributed(),
        )  # fmt: skip
    for path in writer.written:
        sort_header(path)
    return writer.written


def read(folder: Path, stem: str, targets: dict[str, Tensor]) -> None:
    """Fill `targets` in place, whatever number of ranks wrote the files. Every rank must call it."""
    scalars = {name: t for name, t in targets.items() if t.dim() == 0}  # a slice of a scalar cannot be asked for
    wide = {name: t for name, t in targets.items() if t.dim()}
    if wide:
        with _called():
            dcp.load(wide, storage_reader=_Reader(folder, stem), no_dist=not _distributed())
    if scalars:
        for name, value in _scalars(folder, stem, set(scalars)).items():
            scalars[name].copy_(value)


def shapes(folder: Path, stem: str) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the files of `stem`, shards put together."""
    return {name: shape for name, (shape, _) in described(folder, stem).items()}


def described(folder: Path, stem: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """(shape, dtype) of every tensor in the files of `stem`, shards put together."""
    metadata = _Reader(folder, stem).read_metadata().state_dict_metadata
    return {n: (tuple(e.size), e.properties.dtype) for n, e in metadata.items()}  # type: ignore[union-attr]


def files_of(folder: Path, stem: str) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if _is_of(p.name, stem))


def bytes_here(tensors: Mapping[str, Tensor]) -> int:
    """What of `tensors` this rank holds: the size of what it would write, replicated ones included."""
    return sum(t.numel() * t.element_size() for t in map(_local, tensors.values()))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor  # type: ignore[operator]


def _parts(stem: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: stem of its file}: parts of at most PART_BYTES, counted so that all ranks agree."""
    part, size, files = 1, 0, {}
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if size and size + own > PART_BYTES:
            part, size = part + 1, 0
        size += own
        files[name] = stem if part == 1 else f"{stem}.{part}"
    return files


def _is_of(name: str, stem: str) -> bool:
    return name.removesuffix(".safetensors").partition("-")[0].partition(".")[0] == stem


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def _called() -> Iterator[None]:
    """Without the warnings that one process is a mistake; what a rank raised comes out as it was, on all ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        try:
            yield
        except CheckpointException as error:  # no Exception of Python's
            raise next(iter(error.failures.values()))[0] from None


class _Writer(HuggingFaceStorageWriter):
    """The Hugging Face writer under our file names."""

    def __init__(self, folder: Path, files: dict[str, str], sharded: bool):
        super().__init__(str(folder), save_distributed=True)
        self.files, self.suffix = files, ""
        self.written: list[Path] = []
        if sharded:
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            self.suffix = f"-{rank + 1:05d}-of-{world:05d}"

    def write_data(self, plan: Any, planner: Any) -> Any:
        if not plan.items:
            return super().write_data(plan, planner)
        buckets: dict[str, list[Any]] = {}
        for item in plan.items:
            buckets.setdefault(f"{self.files[item.index.fqn]}{self.suffix}.safetensors", []).append(item)
        jobs: queue.Queue = queue.Queue()
        for name, items in buckets.items():
            jobs.put((self.fs.concat_path(self.path, name), name, items))
            self.written.append(Path(self.path) / name)
        return self._write_data(planner, jobs)


class _Files(FileSystem):
    """A folder of which only the files of one stem are seen."""

    def __init__(self, stem: str):
        super().__init__()
        self.stem = stem

    def ls(self, path: Any) -> list[str]:
        return [str(p) for p in files_of(Path(path), self.stem)]


class _Reader(HuggingFaceStorageReader):
    def __init__(self, folder: Path, stem: str):
        super().__init__(str(folder))
        self.fs = _Files(stem)


def sort_header(path: Path) -> None:
    """The library writes the entries of a header in random order."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
            file.flush()
            os.fsync(file.fileno())


def _scalars(folder: Path, stem: str, names: set[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for path in files_of(folder, stem):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in names & set(file.keys())}
    if missing := sorted(names - found.keys()):
        raise DataError(f"{folder}: no {missing[0]!r} in the files of {stem!r}")
    return found
