"""Rewards that a group gives itself, where nobody knows what is right."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.advantages.robust import scored
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


def answer_shares(answer: Tensor, group: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) share of the group that gives the row's answer; entropy of the group's answers, in nats; how many differ.

    answer  (B,) a number of each answer, 0 for none: such rows share nothing
    where   (B,) rows that count
    """
    share, entropy, kinds = (torch.zeros(len(answer), dtype=torch.float64, device=answer.device) for _ in range(3))
    for g in torch.unique(group[where]).tolist():
        rows = (group == g) & where
        given = answer[rows & (answer != 0)]
        if not len(given):
            continue
        names, counts = torch.unique(given, return_counts=True)
        for name, count in zip(names.tolist(), counts.tolist(), strict=True):
            share[rows & (answer == name)] = count / int(rows.sum())
        p = counts.double() / counts.sum()
        entropy[group == g] = -(p * p.log()).sum()
        kinds[group == g] = len(names)
    return share, entropy, kinds


@stage(
    "shaping",
    paper="TTRV: test-time RL for vision-language models, arXiv 2510.06783",
    formula="r_i = f(a_i) - lambda H/log n, f the share of the group that gives answer a_i, H its entropy, n the "
    "different answers",
    confidence="partly",
    needs=("answer",),
    modalities=LANGUAGE,
)
def ttrv(batch: Batch, *, entropy: float = 0.75) -> Tensor:
    """How often the group gives the same answer, in place of a truth. (B,)

    entropy  lambda. The term is the same for the whole group, so a baseline of the group undoes it: it acts with
             `{name: grpo, std: batch}`-like statistics or without a baseline

    Reads `answer (B,)`, which reward `answer_number` makes. What a group agrees on need not be right: such rewards
    sharpen what the policy believed, and collapse if trained on; watch `answer/entropy` and `length/mean`, and stop
    when both fall. Source: a public copy of the authors' code (ttt_metrics.py).
    """
    where = scored(batch)
    share, spread, kinds = answer_shares(batch["answer"], batch.group, where)
    normal = torch.where(kinds > 1, spread / kinds.clamp(min=2).log(), torch.zeros_like(spread))
    return torch.where(where, (share - entropy * normal).to(batch.reward), batch.reward)
