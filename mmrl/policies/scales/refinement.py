"""SAR, self-autoregressive refinement: a next-scale model learns to go on from what it would have written itself.

No reward and no reinforcement learning. A model that was only ever shown true coarse scales meets its own when it
writes, and mistakes grow. So each step has two passes: one on the true scales, and one whose inputs are the predictions
of the first, each moved on by one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmrl.errors import PolicyError
from mmrl.policies.scales.protocol import NextScale, agree, draw
from mmrl.randomness import Key
from mmrl.tools import tool

WEIGHT = 0.01
"""Of the student's part, in the scripts the authors train with."""
Over = Literal["all", "last"]


def staggered(model: NextScale, truth: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
    """The inputs of scales 2 and finer: true tokens of all scales but the one just before, the model's own of that.

    truth, own  (B, N_s) a scale; `own` was predicted from true coarser scales. With `own = truth` these are the inputs
                of teacher forcing
    """
    with torch.no_grad():
        return [model.next_input([*truth[:scale], own[scale]]) for scale in range(len(truth) - 1)]


def token_loss(logits: Sequence[Tensor], tokens: Sequence[Tensor]) -> Tensor:
    """Cross-entropy in nats, the mean over all tokens of these scales: each token weighs the same, so a scale weighs as
    many as it has.

    logits (B, N_s, V_s), tokens (B, N_s) a scale. Tokens carry no gradient
    """
    losses = [
        cross_entropy(scores.flatten(0, 1).float(), codes.flatten(), reduction="none")
        for scores, codes in zip(logits, tokens, strict=True)
    ]
    return torch.cat(losses).mean()


@tool(
    "sar",
    command="mmrl sar PLAN",
    paper="SAR, arXiv 2512.06421",
    formula="L = CE(p(true coarser), true) + w CE(p(own one scale coarser), own), own = sg argmax p(true coarser)",
    confidence="verified",
    modalities=("flow",),
    trains=True,
    deviates=(
        "the formula was read in the authors' code, and of the paper its abstract alone",
        "the student's part is of all scales from the second on, as the authors describe it; their released trainer "
        "has the last alone, behind nothing but the class (student: last has it alone, behind the other scales)",
        "own tokens are argmax, as in their script for d16, or drawn; their draws under guidance, top-k and top-p are "
        "not there",
        "scales are fixed; the authors draw FlexVAR's anew for each step",
        "the paper's result is not reproduced: no FlexVAR and no ImageNet was run",
    ),
)
def sar_loss(
    teacher: Sequence[Tensor], truth: Sequence[Tensor], student: Sequence[Tensor], own: Sequence[Tensor],
    weight: float = WEIGHT, over: Over = "all",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Teacher forcing, and a contrastive student-forcing loss: what is said after own tokens, as after true ones.

    teacher, student  (B, N_s, V_s) of every scale: logits after true tokens, and after own ones
    truth, own        (B, N_s) of every scale: true tokens, and those predicted by `teacher`
    over              scales of the student's part: all from the second on, or the last. The first has no input

    Returns the loss and its two parts. The student is held against the teacher's tokens, not the truth, from which its
    inputs already differ; through them no gradient flows, as through the inputs.
    """
    if len(truth) < 2:
        raise PolicyError("sar: a picture of one scale has no next one; expected tokens of at least two scales")
    first = 1 if over == "all" else len(truth) - 1
    forced = token_loss(teacher, truth)
    free = token_loss(student[first:], own[first:])
    return forced + weight * free, forced, free


@dataclass(frozen=True)
class Refined:
    """Of one step: the loss, its parts, and which share of the model's own tokens is not the true one."""

    loss: Tensor
    teacher: Tensor
    student: Tensor | None
    mistaken: float


def refine(
    model: NextScale, texts: Sequence[str], truth: Sequence[Tensor], *, weight: float, over: Over = "all",
    key: Key | None = None,
) -> Refined:  # fmt: skip
    """The loss of a batch: two passes, or with weight 0 teacher forcing alone and one pass.

    truth  (B, N_s) of every scale
    key    own tokens are drawn by it; without one they are the likeliest
    """
    teacher = model.logits(texts, staggered(model, truth, truth))
    agree(model, teacher, truth)
    own = [draw(logits, key and key.at(purpose=f"own {scale}")) for scale, logits in enumerate(teacher)]
    wrong = torch.cat([(a != b).flatten() for a, b in zip(own, truth, strict=True)]).float().mean()
    if weight == 0:
        forced = token_loss(teacher, truth)
        return Refined(forced, forced, None, float(wrong))
    student = model.logits(texts, staggered(model, truth, own))
    loss, forced, free = sar_loss(teacher, truth, student, own, weight, over)
    return Refined(loss, forced, free, float(wrong))
