"""AutoNPO: when a run has stopped getting better, and which of its later selves is the best guide back then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.tools import tool


def slope(values: Sequence[float]) -> float:
    """Of the least-squares line through `values` at 0, 1, 2, ..."""
    middle, mean = (len(values) - 1) / 2, fmean(values)
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    return sum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread if spread else 0.0


def variance_cost(log_probs: Tensor, guide_log_probs: Tensor) -> float:
    """V = mean exp(2 (lp - lp_guide)) - 1 over the guide's tokens (N,): what its rows cost in variance, 0 for itself.

    The mean of the squared ratio less 1, as a chi-square divergence has it; 0 is the least it can be in expectation,
    and what is below by chance counts as 0.
    """
    return max(float((2 * (log_probs - guide_log_probs).double()).exp().mean()) - 1, 0.0)


@dataclass(frozen=True)
class Guide:
    """A later checkpoint. quality: the share it solves of the prompts that fail now; cost: V of its right rows."""

    step: int
    quality: float
    cost: float

    def signal(self, least: float = 0.05) -> float:
        """S = Q / V. `least` keeps a guide that costs nothing from being worth any quality."""
        return self.quality / max(self.cost, least)


def best_guide(guides: Sequence[Guide]) -> Guide | None:
    """Of the largest signal, the earliest of equals; None where none solves anything."""
    able = [g for g in guides if g.quality > 0]
    return max(able, key=lambda g: (g.signal(), -g.step)) if able else None


@tool(
    "auto_npo",
    command="mmrl autonpo {vlm|video} CONFIG",
    paper="Near-Future Policy Optimization, arXiv 2604.20733",
    formula="where the slope of the reward over W steps < s, or the entropy < h: run D steps ahead, guide = argmax of "
    "S = Q / V over the checkpoints met, roll back, K steps in which its right answers take places of wrong ones",
    confidence="reconstructed",
    modalities=("vlm", "video"),
    trains=True,
)
class Trigger:
    """Looks for the moment at which a run should learn from where it would be later.

    window   W: steps over which the slope of `reward/mean` is taken
    slope    s: below it the run has stopped getting better
    entropy  h: nats below which it has stopped trying; 0: never
    ahead    D: steps that are run on after the moment, for checkpoints to choose a guide from
    rest     steps after a resume in which it does not look

    A monitor: it ends the run D steps after the moment, and `fired` is the step of it. Source: the paper's abstract has
    the moment set by online training signals and the guide by S = Q / V; V, and which signals, are ours.
    """

    def __init__(
        self, *, window: int = 20, slope: float = 0.0, entropy: float = 0.0, ahead: int = 20, rest: int = 0
    ) -> None:  # fmt: skip
        if window < 2 or ahead < 1 or entropy < 0 or rest < 0:
            raise ConfigError(
                f"autonpo: window={window}, ahead={ahead}, entropy={entropy}, rest={rest}; expected at least 2, at "
                "least 1, and 0 or more"
            )
        self.window, self.least, self.entropy, self.ahead, self.rest = window, slope, entropy, ahead, rest
        self.rewards: list[float] = []
        self.fired: int | None = None
        self.why = self.ended = ""
        self.from_step = 0

    def begin(self, step: int) -> None:
        self.rewards, self.from_step = [], step

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        reward = float(metrics.get("reward/mean", math.nan))
        if not math.isnan(reward):
            self.rewards = [*self.rewards, reward][-self.window :]
        if self.fired is None and step > self.from_step + self.rest and (why := self._reason(metrics)):
            self.fired, self.why = step, why
        if self.fired is not None and step >= self.fired + self.ahead:
            self.ended = f"{self.why} at step {self.fired}, and {step - self.fired} steps were run ahead"
        return {"autonpo/reward_slope": slope(self.rewards)} if len(self.rewards) == self.window else {}

    def _reason(self, metrics: dict[str, Any]) -> str:
        entropy = metrics.get("entropy/sampled")
        if self.entropy and entropy is not None and float(entropy) < self.entropy:
            return f"the entropy fell to {float(entropy):.3f}"
        if len(self.rewards) == self.window and (found := slope(self.rewards)) < self.least:
            return f"the reward no longer rises ({found:+.5f} a step over {self.window})"
        return ""
