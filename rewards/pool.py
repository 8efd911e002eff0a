"""Worker processes with a time limit: a reward that raises, hangs or dies takes nothing along.

Each worker is a fresh interpreter (`mmrl.rewards.worker`) that loads rewards once and answers one call at a
time. A call that overruns its limit is ended by killing the worker with everything it started; the next call gets
a new one. A plain subprocess rather than multiprocessing: spawn runs the user's script again when it lacks the
`__main__` guard, and forking a process that holds CUDA or threads is unsafe.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mmrl
from mmrl.errors import RewardError
from mmrl.rewards.calls import Inputs, Outcome
from mmrl.rewards.children import MARK, kill_family
from mmrl.rewards.wire import read_message, write_message

PING_SECONDS = 10.0
ENDING_SECONDS = 2.0
LOAD_SECONDS = 180.0  # importing a user's reward may load large libraries; calls have their own limit


OURS_ALONE = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
FOREIGN = """
import importlib.util, runpy, sys
place, here, module = sys.argv[1:4]
sys.path[0:1] = []
sys.path.append(here)
spec = importlib.util.spec_from_file_location("mmrl", place + "/__init__.py", submodule_search_locations=[place])
sys.modules["mmrl"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv[1:] = []
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""How another interpreter runs a worker: it gets this package by its place, and none of the packages beside it."""


class CallFailed(Exception):
    """A call left no values: `cause` on one line, and the end of the traceback if there is one."""

    def __init__(self, cause: str, traceback: str = ""):
        super().__init__(cause)
        self.cause, self.traceback = cause, traceback


class Worker:
    """One worker process, running `module`. Not thread-safe: borrow it from a pool."""

    def __init__(self, module: str = "mmrl.rewards.worker", python: str | None = None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", MARK: (mark := uuid.uuid4().hex)}
        if python is None:
            command = [sys.executable, "-P", "-m", module]
            environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        else:
            command = [python, "-c", FOREIGN, str(Path(mmrl.__file__).parent), os.getcwd(), module]
            environment = {name: value for name, value in environment.items() if name not in OURS_ALONE}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is the trainer's to handle, and killing takes grandchildren along
        )
        self._mark = mark
        self.loaded: set[str] = set()
        self._lost = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait for its answer; CallFailed when there is none in `timeout` seconds."""
        with _TimeLimit(timeout, self.kill) as limit:
            with contextlib.suppress(BrokenPipeError):  # a dead worker shows in the answer
                write_message(self._process.stdin, request)
            reply = read_message(self._process.stdout)
        if limit.overrun or reply is None:
            self._lost = True
            raise CallFailed("timeout" if limit.overrun else f"worker {self._ended()}")
        if "refused" in reply:
            raise RewardError(reply["refused"])
        if "error" in reply:
            raise CallFailed(reply["error"], reply["traceback"])
        return reply

    def _ended(self) -> str:
        """How it ended; one that only closed its end of the pipe, or wrote into it itself, is ended."""
        try:
            return _ending(self._process.wait(ENDING_SECONDS))
        except subprocess.TimeoutExpired:
            self.kill()
            return "broke the pipe it answers through"

    @property
    def alive(self) -> bool:
        return not self._lost and self._process.poll() is None

    def answers(self) -> bool:
        """Whether it still does as it is asked. A process being killed counts as running until its last thread
        has ended, so an idle one is asked rather than looked up."""
        with contextlib.suppress(CallFailed):
            return self.alive and "error" not in self.ask({"op": "ping"}, PING_SECONDS)
        return False

    def kill(self) -> None:
        kill_family(self._process.pid, self._mark)
        self._process.kill()

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class _TimeLimit:
    """Calls `stop` once `seconds` have passed inside the block; `overrun` says whether it did."""

    def __init__(self, seconds: float, stop: Callable[[], None]):
        self.overrun = self._done = False
        self._stop, self._lock = stop, threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        with self._lock:  # either the block ended in time, or it overran: never a late kill
            if not self._done:
                self.overrun = True
                self._stop()

    def __enter__(self) -> _TimeLimit:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._done = True
        self._timer.cancel()


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"died with exit code {code}"


class WorkerPool:
    """At most `size` workers, started by `start` when first borrowed and kept warm."""

    def __init__(self, size: int, start: Callable[[], Any] = Worker) -> None:
        self._start = start
        self._places: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._alive: list[Worker] = []
        for _ in range(size):
            self._places.put(None)
        self._finalizer = weakref.finalize(self, _close_all, self._alive, os.getpid())

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Worker]:
        """A warm worker, or a new one; a worker that died or was interrupted is not given back."""
        worker = self._places.get()
        try:
            if worker is not None and not worker.answers():  # it died while idle
                self._discard(worker)
                worker = None
            if worker is None:
                worker = self._start()
                self._alive.append(worker)
            yield worker
        except BaseException as error:
            if worker and not (isinstance(error, CallFailed | RewardError) and worker.alive):
                self._discard(worker)
                worker = None
            raise
        finally:
            self._places.put(worker)

    def _discard(self, worker: Worker) -> None:
        self._alive.remove(worker)
        worker.close()

    def close(self) -> None:
        self._finalizer()


def _close_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not stop its parent's workers
        while workers:
            workers.pop().close()


class IsolatedReward:
    """A reward as the pool runs it: `load` once for its description, then call with Inputs."""

    def __init__(self, pool: WorkerPool, name: str, options: Mapping[str, Any], style: str, timeout: float):
        self._pool, self._timeout = pool, timeout
        self._key = f"{name} {dict(options)} {style}"
        self._load = {"op": "load", "key": self._key, "name": name, "options": options, "style": style}

    def load(self) -> dict[str, Any]:
        """The columns it reads, `success` and `isolated`. RewardError when it cannot be used."""
        with self._pool.borrow() as worker:
            return self._load_in(worker)

    def _load_in(self, worker: Worker) -> dict[str, Any]:
        reply = worker.ask(self._load, LOAD_SECONDS)
        worker.loaded.add(self._key)
        return reply

    def __call__(self, inputs: Inputs) -> list[Outcome]:
        """One Outcome per row; CallFailed when the call as a whole left none."""
        request = {
            "op": "call",
            "key": self._key,
            "prompts": inputs.prompts,
            "completions": inputs.completions,
            "columns": inputs.columns,
        }
        with self._pool.borrow() as worker:
            if self._key not in worker.loaded:
                self._load_in(worker)
            reply = worker.ask(request, self._timeout)
        return [Outcome(*row) for row in reply["rows"]]
