"""The end of rewards without truth: a run that has collapsed stops, and says how it knows."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from mmrl.errors import ConfigError, MMRLError
from mmrl.objective.shaping.label_free import answer_shares
from mmrl.record import Batch
from mmrl.rollout.plan import Step, Strategy
from mmrl.shown import tell
from mmrl.stages import LANGUAGE, stage


class Collapsed(MMRLError):
    """A reward without truth has stopped being right: what comes after is worse.

    agreed  every rank raises it, since all see the same batch: they save together
    """

    agreed = True


@stage(
    "rollout",
    "collapse_stop",
    paper="Unsupervised RLVR: the model collapse step, arXiv 2603.08660",
    formula="stop where, in the last `window` steps, the majority is right in less than `least` of the groups of known "
    "truth; or, with none known, entropy of answers < `entropy` and length < `shorter` times the first",
    confidence="partly",
    needs=("answer",),
    modalities=LANGUAGE,
)
class CollapseStop(Strategy):
    """Watches what a group agrees on, and ends the run once agreement has eaten the policy.

    window   steps that are averaged
    least    share of labelled groups whose most frequent answer is right, below which the run has collapsed
    entropy  of a group's answers, in nats, below which they all say the same
    shorter  share of the first steps' length below which answers have shrunk

    labels   labelled groups in the window from which their share is judged; with fewer, the other two signs decide

    Groups whose rows carry a success are the labelled ones: rows of the data set with a truth, which is looked at and
    never trained on. The run raises, and the weights of the step before are saved. Source: secondary
    notes for the share of 1 %; entropy, length and window are ours.
    """

    origins = ()

    def __init__(
        self, *, window: int = 10, least: float = 0.01, entropy: float = 0.05, shorter: float = 0.5,
        labels: int = 64,
    ) -> None:  # fmt: skip
        if window < 1:
            raise ConfigError(f"rollout 'collapse_stop': window={window}; choose at least 1")
        self.window, self.least, self.entropy, self.shorter, self.labels = window, least, entropy, shorter, labels
        self.first: list[float] = []
        self.latest: list[tuple[float, float, int, int]] = []
        self.blind = False

    def observe(self, batch: Batch, step: Step) -> None:
        """Remember this step, and raise Collapsed where the latest ones say so."""
        where = batch.counted & (batch["answer"] != 0)
        if not where.any():
            if not self.blind:
                tell(f"step {step.number + 1}: collapse_stop reads no answer of this step, and so watches nothing")
            self.blind = True
            return
        share, entropy, _ = answer_shares(batch["answer"], batch.group, where)
        length = batch.length[where].double().mean().item()
        self.latest = [*self.latest, (entropy[where].mean().item(), length, *agreed(batch, share, where))][
            -self.window :
        ]
        if len(self.first) < self.window:
            self.first.append(length)
        if len(self.latest) == self.window and (reason := self.reason()):
            raise Collapsed(f"step {step.number + 1}: {reason}: this reward has no truth, and has stopped being right")

    def reason(self) -> str:
        """Why the run has collapsed; "" where it has not."""
        of = sum(each[3] for each in self.latest)
        if of >= max(self.labels, 1):
            right = sum(each[2] for each in self.latest) / of
            return (
                f"the most frequent answer is right in {right:.1%} of the labelled groups" if right < self.least else ""
            )
        entropy, length = (fmean(values) for values in list(zip(*self.latest, strict=True))[:2])
        before = fmean(self.first)
        if entropy < self.entropy and length < self.shorter * before:
            return f"answers of a group agree ({entropy:.3f} nats) and shrank from {before:.0f} to {length:.0f} actions"
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "latest": [list(each) for each in self.latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = list(state["first"])
        self.latest = [(float(e), float(n), int(right), int(of)) for e, n, right, of in state["latest"]]


def agreed(batch: Batch, share: torch.Tensor, where: torch.Tensor) -> tuple[int, int]:
    """Of how many groups of known truth the most frequent answer is right, and how many such groups there are."""
    if batch.success is None:
        return 0, 0
    labelled = where & ~batch.success.isnan()
    right = []
    for group in torch.unique(batch.group[labelled]).tolist():
        rows = (labelled & (batch.group == group)).nonzero().squeeze(1)
        right.append(float(batch.success[rows[share[rows].argmax()]]) > 0.5)
    return sum(right), len(right)
