"""Reading a run that may be training: its newest checkpoint moves on, and older ones go, while they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

TRIES = 20


def steady(run: Path, read: Callable[[], Found]) -> Found:
    """What `read` finds, again where the run's checkpoints were others when it failed than when it began.

    run  its directory; `read` chooses its checkpoint by itself
    """
    for _ in range(TRIES):
        before = _names(run)
        try:
            return read()
        except Exception:  # files that go raise errors of whoever was reading them
            if _names(run) == before:
                raise
    return read()


def _names(run: Path) -> set[str]:
    folder = run / "checkpoints"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
