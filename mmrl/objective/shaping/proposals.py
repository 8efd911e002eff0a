"""What a prompt that the policy wrote is worth: as much as it teaches those that solve it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage

Kind = Literal["rare", "failure", "band", "spread"]
KINDS = ("rare", "failure", "band", "spread")


def earned(scores: Tensor, kind: str, low: float, high: float) -> float:
    """Of what solvers came to, by its mean: `failure`: 1 - success. `rare`: likewise, but 0 where nobody succeeds.
    `band`: 1 within [low, high], else 0. `spread`: their deviation over .5, at most 1."""
    if kind == "spread":
        return min(1.0, float(scores.double().std(correction=0)) / 0.5)
    success = float(scores.double().mean())
    if kind == "band":
        return float(low <= success <= high)
    return 1 - success if success > 0 or kind == "failure" else 0.0


@stage(
    "shaping",
    "proposals",
    method="absolute_zero",
    paper="Absolute Zero, arXiv 2505.03335; code LeapLabTHU/Absolute-Zero-Reasoner, reward_managers.py",
    formula="of a proposal: 1 - mean success if above 0; useless -> `useless`, unreadable or refused -> `malformed`",
    confidence="verified",
    needs=("proposes", "proposal_group", "proposal_member"),
    modalities=LANGUAGE,
)
def proposals(
    batch: Batch, *, kind: Kind = "rare", low: float = 0.125, high: float = 0.625,
    useless: float = -0.5, malformed: float = -1.0,
) -> Tensor:  # fmt: skip
    """Proposers are paid by the success of those that solve what they wrote; all other rows keep their reward. (B,)

    kind       rare: solvable and seldom solved is best (Absolute Zero); failure: unsolved is best, of questions that
               were found valid before (search self-play); band: 1 inside (SvS); spread: answers that differ most are
               best (Syn-GRPO)
    low, high  the band
    useless    of a proposal that was solved, and earned nothing
    malformed  of one that could not be read, or that was refused before anybody solved it

    A proposal none of whose answers could be scored is unscored itself, and so is a row that no reward scored.
    """
    if kind not in KINDS:
        raise ConfigError(f"proposals: {unknown('kind', kind, KINDS)}")
    worth = batch.reward if batch.success is None else torch.where(
        batch.success.isnan(), batch.reward, batch.success.to(batch.reward)
    )  # fmt: skip
    solving = batch["proposal_group"] >= 0
    checks = batch["checks_proposal"] > 0 if "checks_proposal" in batch else torch.zeros_like(solving)
    reward = batch.reward.clone()
    for row in (batch["proposes"] > 0).nonzero().squeeze(1).tolist():
        mine = solving & ~checks & (batch["proposal_group"] == int(batch.group[row]))
        mine &= batch["proposal_member"] == int(batch.member[row])
        scores = worth[mine & ~worth.isnan()]
        if not mine.any():
            reward[row] = malformed
        elif not len(scores):
            reward[row] = float("nan")
        else:
            gain = earned(scores, kind, low, high)
            reward[row] = gain if gain > 0 else useless
    return torch.where(batch.reward.isnan(), batch.reward, reward)
