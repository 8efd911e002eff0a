"""When a run stops before its last step: signals that ask it to save, agreed on by all ranks."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from accelerate import Accelerator

from mmrl.training.distributed import gather_objects

ASKING = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, n))
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun and accelerate, which send a signal of their own after the terminal's."""


class Stopping:
    """Inside the block, Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP ask the run to finish its step, save and stop.

    A second Ctrl-C stops at once, unless a launcher passes signals on. `nohup` keeps its meaning. In a thread that is
    not the main one, nothing is caught.

    asked  the signal this process got; agreed: the one all ranks know of
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.asked: int | None = None
        self.agreed: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT and LAUNCHED not in os.environ:
            raise KeyboardInterrupt
        self.asked = self.asked or number

    def agree(self, due: bool = False) -> bool:
        """Whether any rank was asked to stop by now; returns whether the first rank says a save is `due`.

        Every rank must call it, at the same place: none leaves the step while another goes on.
        """
        said = gather_objects((self.asked, due), self.accelerator)
        self.agreed = self.agreed or next((asked for asked, _ in said if asked is not None), None)
        return said[0][1]

    def halted(self) -> bool:
        """Agree, and say whether to stop."""
        self.agree()
        return self.agreed is not None
