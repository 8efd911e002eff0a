"""No rank outlives the others: a launcher or a rank that dies ends all of them, with its error shown.

A rank writes what ended it into the store the ranks met in, and where it runs. Each looks at the others every few
seconds, from a thread: one that waits in a collective for a rank that is gone would wait for half an hour.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import MMRLError
from mmrl.shown import one_line
from mmrl.training.stopping import LAUNCHED

LOOK_SECONDS = 2.0
GRACE_SECONDS = 20.0
"""In which a rank that heard of another's end may save, or fail by itself."""
_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """A rank that torchrun or accelerate started gets SIGTERM when its launcher dies, however that dies: it saves and
    stops as for any SIGTERM. Linux tells it; elsewhere the thread below sees it."""
    if LAUNCHED in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextmanager
def together_to_the_end() -> Iterator[None]:
    """Inside the block, ranks watch each other. What ends one is told to the others, and added to their errors."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    end_with_launcher()
    peers = Peers()
    threading.Thread(target=peers.watch, daemon=True, name="peers").start()
    try:
        yield
    except BaseException as error:
        peers.tell(error)
        if not isinstance(error, MMRLError) and (cause := peers.failed()):
            error.add_note(f"mmrl: {cause}")
        raise
    finally:
        peers.done = True
        with suppress(Exception):
            peers.store.set(peers.key("done", peers.rank), "1")


class Peers:
    """What ranks know of each other, through the store they met in. Each training of a process has keys of its own."""

    trainings = 0

    def __init__(self) -> None:
        Peers.trainings += 1
        self.training = Peers.trainings
        self.store: Any = torch.distributed.distributed_c10d._get_default_store()
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.done, self.parent = False, os.getppid()
        self.store.set(self.key("place", self.rank), json.dumps([_machine(), os.getpid()]))

    def key(self, kind: str, rank: int) -> str:
        return f"mmrl/{self.training}/{kind}/{rank}"

    def tell(self, error: BaseException) -> None:
        with suppress(Exception):  # the store may be gone with the rank that held it
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self.store.set(self.key("failed", self.rank), said)

    def failed(self) -> str | None:
        """What ended another rank, as it said, or as its process shows."""
        for rank in (r for r in range(self.world) if r != self.rank):
            if (said := self._read("failed", rank)) is not None:
                return f"rank {rank} failed: {one_line(said)}"
            place = self._read("place", rank)
            if place is None or self._read("done", rank) is not None:
                continue
            host, pid = json.loads(place)
            if host == _machine() and not _runs(pid):
                return f"rank {rank} (process {pid}) has died without a word: killed, or out of memory"
        return None

    def _read(self, kind: str, rank: int) -> str | None:
        key = self.key(kind, rank)
        return self.store.get(key).decode() if self.store.check([key]) else None

    def watch(self) -> None:
        """Ends this process `GRACE_SECONDS` after another rank or the launcher ended without it."""
        while not self.done:
            time.sleep(LOOK_SECONDS)
            try:
                cause = self.failed()
            except Exception as error:
                cause = f"the rank that keeps the store is gone ({one_line(str(error))[:100]})"
            if LAUNCHED in os.environ and os.getppid() != self.parent:
                cause = "the launcher has died"
                os.kill(os.getpid(), signal.SIGTERM)
            if cause is None or self.done:
                continue
            time.sleep(GRACE_SECONDS)
            if not self.done:
                print(f"mmrl: rank {self.rank} ends: {cause}", file=sys.stderr, flush=True)
                os._exit(1)


def _machine() -> str:
    """Where process numbers mean the same: containers may share a host's name, and have numbers of their own."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True
