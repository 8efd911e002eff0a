"""Prompts made ready before the step that asks for them: images opened, clips decoded into the cache.

The trainer says which prompts come next (`prefetch`). Threads open them and hand their clips to decoder processes
while the model trains; the step finds a prompt ready, or waits for the rest of the work. What a prompt holds does
not depend on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, Self

from mmrl.data.prompts import Prompts
from mmrl.record import Prompt


class Ahead(Prompts):
    """`prompts`, of which those announced are prepared in the background.

        with Ahead(prompts, workers=2, read=lambda clip: read_clip(clip, sampling, cache=cache)) as prompts:
            Trainer(policy, objective, prompts, ...).train()

    prompts  a sequence that gives the same prompt whenever and in whichever thread it is asked, such as any of
             `open_dataset`; it is never asked by two threads at once
    workers  prompts prepared at a time; each decodes in a process of its own
    read     reads a clip so that the policy finds it in the cache; None: only images are opened

    An error met ahead is raised where the prompt is asked for, and is forgotten with a prompt nobody asks for.
    """

    def __init__(self, prompts: Sequence[Prompt], workers: int, read: Callable[[Any], Any] | None = None):
        self._prompts, self._read = prompts, read
        self._coming: dict[int, Future[Prompt]] = {}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self._prompts)

    def ids(self) -> list[str]:
        return self._prompts.ids() if isinstance(self._prompts, Prompts) else [p.id for p in self._prompts]

    def columns(self, index: int) -> Mapping[str, Any] | None:
        return self._prompts.columns(index) if isinstance(self._prompts, Prompts) else None

    def prompt(self, index: int) -> Prompt:
        """The prompt as it was made ready, or opened now; raises what went wrong with it."""
        prepared = self._coming.pop(index, None)
        return self._open(index) if prepared is None else prepared.result()

    def _open(self, index: int) -> Prompt:
        with self._opening:
            return self._prompts[index]

    def _prepare(self, index: int) -> Prompt:
        prompt = self._open(index)
        if self._read is not None:
            for clip in prompt.videos:
                self._read(clip)
        return prompt

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin with these, in order. What was announced before and is not among them is dropped."""
        wanted = dict.fromkeys(indices)
        for index in self._coming.keys() - wanted.keys():
            self._coming.pop(index).cancel()
        for index in wanted:
            if index not in self._coming:
                self._coming[index] = self._threads.submit(self._prepare, index)

    def wait(self) -> None:
        """Return when everything announced is ready, or has failed."""
        wait_for(self._coming.values())

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._coming.clear()
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
