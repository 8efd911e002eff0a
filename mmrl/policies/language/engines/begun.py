"""Rows an engine writes while the trainer trains: begun with the weights as they are, taken up when they are due.

One thread asks the engine, for one thing after another, so that it is never told of weights while it writes. It holds a
copy of the weights that rows were begun with, since the optimizer moves the trainer's own meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.randomness import Key

Weights = Iterable[tuple[str, Tensor]]


@dataclass
class Begun:
    """prompts  of the rows, in their order
    version  of the weights they are written with
    """

    prompts: list[str]
    version: int
    written: Future[Any]


class Ahead:
    """The engine's thread, and what it was asked for: `begin(key, ...)`, then `take(key, ...)`."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[Key, Begun] = {}
        self._copy: tuple[int, list[tuple[str, Tensor]]] | None = None

    def run(self, work: Callable[[], Any]) -> Any:
        """`work` once the engine has done what it was asked for before; at once where there was nothing."""
        return work() if self._thread is None else self._thread.submit(work).result()

    def begin(
        self, key: Key, prompts: Sequence[str], version: int, weights: Callable[[], Weights],
        work: Callable[[Weights, int], Any],
    ) -> None:  # fmt: skip
        """work  (weights, their version) -> what is due under `key`; in the engine's thread, later"""
        if self._copy is None or self._copy[0] != version:
            self._copy = version, [(name, weight.detach().to("cpu", copy=True)) for name, weight in weights()]
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        copied = self._copy[1]
        self._begun[key] = Begun(list(prompts), version, self._thread.submit(work, copied, version))

    def take(self, key: Key, prompts: Sequence[str]) -> Begun | None:
        """What was begun under `key`, for these prompts; None where nothing was."""
        begun = self._begun.pop(key, None)
        if begun is None:
            return None
        if list(prompts) != begun.prompts:
            raise PolicyError(
                f"{len(begun.prompts)} rows were written ahead, for other prompts than the {len(prompts)} that this "
                "step asks for"
            )
        return begun

    def close(self) -> None:
        """Leave what was not begun yet, and wait for what was."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread, self._copy = None, None
        self._begun.clear()
