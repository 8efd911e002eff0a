"""`metrics.jsonl`, one line a step: how it is written, and read again."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from mmrl.errors import DataError
from mmrl.shown import tell
from mmrl.training.storage import write_atomically, writing

MOST_STEPS = 10**12


class JsonLines:
    """One line a step, flushed to disk at once, so that a killed run keeps every step it made."""

    def __init__(self, path: Path, keep_until: int = 0):
        """Lines past step `keep_until` are dropped: a resumed run writes them again."""
        self.path = path
        rows, damaged = parse_metrics(path)
        keep_damaged(path, damaged)
        write_atomically(path, "".join(json.dumps(m) + "\n" for m in rows if m["step"] <= keep_until))
        with writing(path):
            self.file = path.open("a")

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        with writing(self.path):
            self.file.write(json.dumps({"step": step, **metrics}) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())

    def show(self, step: int, folder: Path) -> None:
        """Rollouts lie in their own folder already."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what the disk refused was said when it was written
            self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line. Damaged ones are named; a last line cut by a crash is left out."""
    rows, damaged = parse_metrics(path)
    if damaged:
        tell(_named(path, damaged))
    return rows


def parse_metrics(path: Path) -> tuple[list[dict[str, Any]], list[tuple[int, bytes]]]:
    """Whole lines, and (number, bytes) of those that are not; a last line without its end is neither."""
    if not path.exists():
        return [], []
    if not path.is_file():
        raise DataError(f"{path}: is not a file")
    rows, damaged = [], []
    with writing(path):
        content = path.read_bytes()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number <= content.count(b"\n"):
            damaged.append((number, line))
    return rows, damaged


def keep_damaged(path: Path, damaged: list[tuple[int, bytes]]) -> None:
    """Before a file of metrics is written anew: what is left out is named, and kept beside it."""
    if damaged:
        beside = path.with_name("metrics.damaged.txt")
        tell(f"{_named(path, damaged)}, kept in {beside.name}")
        if beside.is_symlink():  # what it points to is not ours to write into
            beside.unlink()
        with writing(beside), beside.open("ab") as file:
            file.write(b"".join(line + b"\n" for _, line in damaged))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    whole = isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MOST_STEPS
    return row if whole else None


def _named(path: Path, damaged: list[tuple[int, bytes]]) -> str:
    number, line = damaged[0]
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{path}, line {number}{more}: not the metrics of a step: {line[:60].decode(errors='replace')!r}; left out"


def environment() -> dict[str, Any]:
    """Versions and machine, for `environment.json`."""
    import torch

    packages = ("mmrl", "torch", "transformers", "diffusers", "accelerate", "peft", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": versions,
    }
