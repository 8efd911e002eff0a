"""The bridge from sparse rewards to a small model: in which order, with which labels, and when a teacher is done."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from mmrl.errors import ConfigError
from mmrl.tools import tool

STAGES = ("teacher", "warm_up", "distil", "student")
LABELLED = ("teacher", "student")
"""Stages that read rewards; the two between them read the teacher alone."""


@tool(
    "sparse_to_dense_bridge",
    command="mmrl bridge PLAN",
    paper="Beyond GRPO and On-Policy Distillation: Sparse-to-Dense Reward, arXiv 2605.12483",
    formula="GRPO of the strong model; -lp(y), y ~ pi_T; k_t = lp_T - lp on own samples until KL(pi || pi_T) stops "
    "falling; GRPO of the small model",
    confidence="partly",
    modalities=("vlm", "video"),
    trains=True,
)
class NoLongerFalling:
    """A strong model spends the labels, a small one learns from it densely, and then from labels itself.

    window  steps whose mean `teacher/kl` is compared with that of as many before them
    least   share by which it has to be smaller, for the run to go on

    The monitor that ends the third stage: it counts on `teacher/kl` in the metrics of every step. Source: the abstract,
    which has the four stages and what leaving one out costs; when the third is done is ours.
    """

    def __init__(self, window: int = 20, least: float = 0.02):
        if window < 1 or not 0 <= least < 1:
            raise ConfigError(f"bridge: window={window}, least={least}; expected at least 1, and [0, 1)")
        self.window, self.least = window, least
        self.seen: list[float] = []
        self.ended = ""

    def begin(self, step: int) -> None:
        """What was seen before a resume is not known: the windows fill again."""
        self.seen = []

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        self.seen = [*self.seen, float(metrics["teacher/kl"])][-2 * self.window :]
        if len(self.seen) == 2 * self.window:
            before, now = fmean(self.seen[: self.window]), fmean(self.seen[self.window :])
            if now > (1 - self.least) * before:
                self.ended = f"the KL to the teacher no longer falls: {before:.4f}, then {now:.4f}"
        return {}
