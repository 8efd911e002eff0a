"""When a run saves: every so many steps or minutes, at the end, and at the best score so far."""

from __future__ import annotations

import math
import time
from typing import Any

from mmrl.errors import ConfigError, unknown
from mmrl.training.config import TrainingConfig


class Saving:
    """What `training.save_every`, `save_every_minutes`, `export_every` and `keep_best` ask for.

    best  (score, step) of the best checkpoint, None before there is one
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.best: tuple[float, int] | None = None
        self.begin_interval()

    def begin_interval(self) -> None:
        self._since = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the configuration asks for a checkpoint at this step, whatever the clock says."""
        every = self.config.save_every
        return self.exports(step) or bool(every and step % every == 0)

    def exports(self, step: int) -> bool:
        """Whether the checkpoint of this step holds the Hugging Face layout too."""
        every = self.config.export_every
        return step == self.config.steps or bool(every and step % every == 0)

    def minutes_are_over(self) -> bool:
        minutes = self.config.save_every_minutes
        return bool(minutes and time.monotonic() - self._since >= 60 * minutes)

    def is_best(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether the named score is better than at any step so far; remembers it."""
        if self.config.keep_best is None:
            return False
        self.check_name(metrics, evaluated=False)
        score = metrics.get(self.config.keep_best)
        if not isinstance(score, int | float) or not math.isfinite(score):
            return False
        if self.best is not None and score <= self.best[0]:
            return False
        self.best = (float(score), step)
        return True

    def check_name(self, metrics: dict[str, Any], *, evaluated: bool) -> None:
        """ConfigError for a score that nobody will ever report. Held-out ones are known after the first evaluation."""
        name = self.config.keep_best
        if name is None or name.startswith("eval/") != evaluated or name in metrics:
            return
        if evaluated and not metrics:
            raise ConfigError(
                f"training.keep_best={name} is a held-out score, and there is no held-out data (data.eval)"
            )
        known = [key for key, value in metrics.items() if isinstance(value, int | float)]
        raise ConfigError(f"training.keep_best: {unknown('score', name, known)}")

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self.best) if self.best else None} if self.config.keep_best else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("best"):
            score, step = state["best"]
            self.best = (float(score), int(step))
