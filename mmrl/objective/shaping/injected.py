"""What an annotated answer among a group's own is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.credit.rollouts import component
from mmrl.objective.groups import group_count, group_extreme, group_mean
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "shaping",
    "visurf",
    paper="ViSurf: visual supervised-and-reinforcement fine-tuning, arXiv 2510.10606",
    formula="r_y <- r_y - w r_y^think; then r_y <- mean_i r_i if max_i r_i >= r_y, i the group's own rows",
    confidence="partly",
    needs=("expert",),
    modalities=LANGUAGE,
)
def visurf(batch: Batch, *, thinking: str = "", weight: float = 1.0) -> Tensor:
    """The annotated answer earns nothing for thinking, and switches itself off once the policy does as well. (B,)

    thinking  reward component for reasoning in the right form, of which the annotated answer has none
    weight    that component's weight in the reward

    Rows marked `expert (B,)` are annotated answers. With the group's mean for a reward their advantage is 0. Whoever
    writes the annotations writes them exactly as the policy does, spaces and key order too. Source: a detailed
    secondary description with the formulas.
    """
    expert, reward = batch["expert"].bool(), batch.reward
    if thinking:
        earned = component(batch, thinking, "visurf").nan_to_num(0).to(reward)
        reward = torch.where(expert, reward - weight * earned, reward)
    own = batch.counted & ~expert & ~reward.isnan()
    best, mean = group_extreme(reward, batch.group, own), group_mean(reward, batch.group, own)
    has_own = group_count(batch.group, own) > 0
    return torch.where(expert & has_own & (best >= reward), mean, reward)
