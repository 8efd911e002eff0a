"""How many threads a step takes on a CPU that others use as well.

Threads of OpenMP meet at the end of every kernel. Where another process holds a core, one of two threads waits for its
turn and the other for it: two threads then take longer than one, of the clock and of the processor. So between steps
`ByLoad` looks at what others took of all cores meanwhile, and takes as many threads as they left whole cores, one at
least and as many as were set at most.

Numbers of a step depend on the threads in their last digits: a run that chooses by load is not repeated bit for bit.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import ConfigError

STAT = Path("/proc/stat")


def left_over(cores: int, others: float, most: int) -> int:
    """Threads where others take so many `cores`, from 1 to `most`: a core that is more than half free is taken."""
    return max(1, min(most, round(cores - others)))


def worked(stat: str) -> float:
    """Seconds that all cores have worked since the machine began, by the first line of `/proc/stat`: all that is no
    idling or waiting for a disk. Guests are part of what users took."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, stat.split(maxsplit=9)[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def monitors_of(choice: str) -> list[ByLoad]:
    """What `training.threads` asks for."""
    return [ByLoad()] if choice == "by_load" else []


class ByLoad:
    """A monitor that sets torch's threads after every step, by what it saw of others meanwhile. The first is taken as
    it was set."""

    ended = ""

    def __init__(self) -> None:
        if not STAT.is_file():
            raise ConfigError(f"training.threads: by_load reads {STAT}, which this system has not; leave it 'set'")
        self.cores, self.most = len(os.sched_getaffinity(0)), torch.get_num_threads()
        self._before: tuple[float, float] | None = None

    def begin(self, step: int) -> None:
        self._before = self._now()

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """`threads` of the step that is over; those of the next are set."""
        taken, before, self._before = torch.get_num_threads(), self._before, self._now()
        if before is not None and (passed := self._before[0] - before[0]) > 0:
            others = max((self._before[1] - before[1]) / passed, 0.0)
            torch.set_num_threads(left_over(self.cores, others, self.most))
        return {"threads": float(taken)}

    @staticmethod
    def _now() -> tuple[float, float]:
        """The clock, and the processor seconds of others so far."""
        return time.monotonic(), worked(STAT.read_text()) - time.process_time()
