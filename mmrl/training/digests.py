"""Whether a checkpoint is what was written: a digest of every file, and of the state that lists them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mmrl.errors import DataError, MMRLError

CHUNK_BYTES = 2**22
_STEP = re.compile(r"step-(\d+)")


def digest_of(path: Path) -> dict[str, Any]:
    """`{"bytes", "sha256"}` of a file as it lies on the disk."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": found.hexdigest()}


def sealed(state: dict[str, Any]) -> str:
    """`state.json`: the state with a digest of itself."""
    return json.dumps({**state, "sha256": _digest(state)}, indent=1)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json`, as it was written. Raises DataError that names the file for anything else.

    What mmrl wrote before there were digests has none, and passes.
    """
    path = checkpoint / "state.json"
    if path.exists() and not path.is_file():  # to read a pipe is to wait for whoever writes into it
        raise DataError(f"{path}: is not a file")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        claimed = state.pop("sha256", None)
        whole = isinstance(state["step"], int) and isinstance(state["policy"], dict) and _lists_files(state)
    except FileNotFoundError:
        raise DataError(f"{path}: not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    if not whole or (("files" in state or claimed is not None) and claimed != _digest(state)):
        raise DataError(f"{path}: damaged: its digest is not that of what was written")
    named = _STEP.fullmatch(checkpoint.name)
    if named and int(named[1]) != state["step"]:
        raise DataError(f"{path}: is of step {state['step']}, not of {checkpoint.name}: a copy under another name?")
    return state


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """What a state of somebody else's making raises inside the block becomes a DataError that names its file."""
    try:
        yield
    except MMRLError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"{checkpoint}/state.json: not the state of a run with this configuration: {type(error).__name__}: {error}"
        ) from None


def _lists_files(state: dict[str, Any]) -> bool:
    files = state.get("files", {})
    return isinstance(files, dict) and all(
        isinstance(f, dict) and {"bytes", "sha256"} <= set(f) for f in files.values()
    )


def verify(checkpoint: Path, state: dict[str, Any], names: Iterable[str] | None = None) -> None:
    """DataError for the first listed file that is missing, cut or changed; `names` limits which are read."""
    for name, claimed in state.get("files", {}).items():
        if names is not None and name not in names:
            continue
        if _leads_outside(name):
            raise DataError(f"{checkpoint}/state.json: lists {name!r}, which is outside the checkpoint")
        path = checkpoint / name
        if not path.resolve().is_relative_to(checkpoint.resolve()):
            raise DataError(f"{path}: is a link that leads out of the checkpoint")
        if not path.is_file():
            raise DataError(f"{path}: not there")
        if path.stat().st_size != claimed["bytes"]:
            raise DataError(f"{path}: damaged: {path.stat().st_size:,} bytes, {claimed['bytes']} were written")
        if digest_of(path) != claimed:
            raise DataError(f"{path}: damaged: its digest is not that of what was written")


def _leads_outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
