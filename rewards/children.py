"""Every process that a reward started, also those that left its process group: they end with its worker.

A worker marks its environment, which children inherit; where there is /proc, the marked ones and the descendants of the
worker are found and killed. Elsewhere only the process group goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

MARK = "MMRL_REWARD_WORKER"
_PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 3
"""A process may start another while it is looked for."""
LEAVING_SECONDS = 1.0
"""For killed processes to be gone; one in an uninterruptible sleep takes longer, and is left to the system."""


def adopt_orphans() -> None:
    """From now on, whatever descends from this process stays its descendant, also a daemon that cut every tie."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_family(pid: int, mark: str, *, spare: int | None = None) -> None:
    """Kill the worker `pid`, its group, its descendants, and whatever carries its mark; `spare` is left alive."""
    if spare is None and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGSTOP)  # so that it starts nothing while its children are counted
    for _ in range(ROUNDS):
        found = family(pid, mark) - {spare, os.getpid()}
        for each in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        if not found or not _gone(found):
            break
    if spare is None and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _gone(killed: set[int]) -> bool:
    """Whether all have ended, which takes a moment that is waited for."""
    until = time.monotonic() + LEAVING_SECONDS
    while any(_lives(pid) for pid in killed):
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def family(pid: int, mark: str) -> set[int]:
    """Living processes that descend from `pid`, or were started with its mark; without `pid` itself."""
    parents: dict[int, int] = {}
    found = set()
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in ("Z", "X"):
                continue
            parents[int(entry.name)] = int(parent)
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return (found | below) - {pid}
