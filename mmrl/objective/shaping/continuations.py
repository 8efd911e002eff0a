"""Rewards of rows that go on with a text of their group: how much of it they say again."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "shaping",
    paper="REFINE: reinforced fast weights with next-sequence prediction, arXiv 2602.16704",
    formula="r = mean_j 1[a_(t+j) = x_(t+j)], j < width, t where the row begins in the text x",
    confidence="partly",
    needs=("actions", "expert", "begins"),
    modalities=LANGUAGE,
)
def refine(batch: Batch, *, width: int = 5) -> Tensor:
    """The share of the next actions that are those of the text, in place of any reward. (B,)

    width  actions that are compared; fewer where the text ends before

    The text is the row of the group on which `expert (B,)` is 1; on it the reward is 1, and groups without one keep
    theirs. What could not be scored stays so: name a reward that scores every answer. Source: secondary notes. The
    authors add the cosine between hidden states of both, which no column has.
    """
    if batch.actions is None:
        raise ConfigError("shaping 'refine' compares token ids, and this batch has no actions")
    expert, reward = batch["expert"] > 0, batch.reward.clone()
    reward[expert] = 1.0
    for row in (~expert).nonzero().squeeze(1).tolist():
        texts = ((batch.group == batch.group[row]) & expert).nonzero().squeeze(1)
        if not len(texts):
            continue
        text, begins = int(texts[batch.member[texts].argmin()]), int(batch["begins"][row])
        where = slice(begins, min(begins + width, int(batch.length[text])))
        same = (batch.actions[row, where] == batch.actions[text, where]) & batch.mask[row, where]
        reward[row] = same.double().sum() / max(where.stop - begins, 1)
    return torch.where(batch.reward.isnan(), batch.reward, reward)
