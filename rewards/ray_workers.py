"""Reward workers that Ray placed: each is an actor with one worker process of `mmrl.rewards.pool`, so that a reward
that hangs or dies is ended there as it is here. An actor that dies is made again by Ray, and asked again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from mmrl.errors import RewardError
from mmrl.placed import Placed, placed
from mmrl.rewards.pool import LOAD_SECONDS, CallFailed, Worker
from mmrl.shown import tell

WAIT_SECONDS = 60.0
"""Beyond a call's own limit: in which an actor that died is made again."""


class RewardActor:
    """One worker process. It may be another one than was asked before, so each request says what it needs loaded."""

    def __init__(self) -> None:
        self.worker: Worker | None = None

    def pid(self) -> int:
        return os.getpid()

    def ask(self, load: Mapping[str, Any] | None, request: Mapping[str, Any], timeout: float) -> tuple[str, Any, int]:
        """("done", reply), ("failed", (cause, traceback)) or ("refused", reason); and which process says so."""
        state, reply = self._answer(load, request, timeout)
        return state, reply, os.getpid()

    def _answer(self, load: Mapping[str, Any] | None, request: Mapping[str, Any], timeout: float) -> tuple[str, Any]:
        try:
            if self.worker is None or not self.worker.alive:
                self.worker = Worker()
            if load is not None and load["key"] not in self.worker.loaded:
                self.worker.ask(load, LOAD_SECONDS)
                self.worker.loaded.add(load["key"])
            return "done", self.worker.ask(request, timeout)
        except CallFailed as error:
            return "failed", (error.cause, error.traceback)
        except RewardError as error:
            return "refused", str(error)


class RayWorker:
    """Stands in a pool for a `Worker`, and asks an actor."""

    pid = -1
    alive = True

    def __init__(self, name: str, actor: Any):
        self.name, self.actor, self.loaded = name, actor, set[str]()
        self.process: int | None = None
        self._loads: dict[Any, Mapping[str, Any]] = {}

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """As `Worker.ask`; CallFailed too where the actor cannot be made again."""
        import ray

        key = request.get("key")
        if request["op"] == "load":
            self._loads[key] = request
        load = self._loads.get(key) if request["op"] == "call" else None
        limit = timeout + (LOAD_SECONDS if load else 0) + WAIT_SECONDS
        try:
            state, reply, process = ray.get(self.actor.ask.remote(load, request, timeout), timeout=limit)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise CallFailed(f"{self.name} of the cluster: {type(error).__name__}") from None
        if self.process not in (None, process):
            tell(f"{self.name} (process {self.process}) died and was replaced by process {process}")
        self.process = process
        if state == "failed":
            raise CallFailed(*reply)
        if state == "refused":
            raise RewardError(reply)
        return reply

    def answers(self) -> bool:
        """Ray replaces it when it is dead."""
        return True

    def kill(self) -> None:
        """The cluster's, and other trainers ask it too."""

    close = kill


def starter() -> Callable[[], Any]:
    """What a pool starts its workers with: processes here, or, where Ray placed reward workers, those in turn."""
    found = placed()
    if found is None or not found.reward_workers:
        return Worker
    numbers = count(found.rank)

    def next_of(found: Placed = found) -> RayWorker:
        name = f"reward-{next(numbers) % found.reward_workers}"
        return RayWorker(name, found.actor(name))

    return next_of
