"""Shaping that compares groups that saw the same clip differently."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.credit.rollouts import component
from mmrl.objective.groups import group_count, group_mean
from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "shaping",
    "video_r1_t_grpo",
    method="video_r1",
    paper="Video-R1, arXiv 2503.21776; code tulerfeng/Video-R1, grpo_trainer.py",
    formula="+ .3 where acc > .1 if mean acc >= .8 mean acc(reordered); + .2 where acc > .1 and 320 <= length <= 512",
    confidence="partly",
    needs=("reordered",),
    modalities=("video",),
)
def video_r1_t_grpo(
    batch: Batch,
    *,
    accuracy: str = "accuracy",
    least: float = 0.1,
    share: float = 0.8,
    bonus: float = 0.3,
    length_bonus: float = 0.2,
    shortest: int = 320,
    longest: int = 512,
) -> Tensor:
    """Right answers earn more where the order of the frames mattered, and where they are of a good length. (B,)

    accuracy  the reward component that says how right an answer is; above `least` it counts as right
    share     the group in order must be at least this share as accurate as the one out of order: the code's .8, not 1
    bonus     what a right answer earns in such a group
    length_bonus  what one earns of a length from `shortest` to `longest` tokens: long enough to think, and no longer

    Reads `reordered (B,)` of rollout `video_r1_t_grpo`. The length bonus needs two right answers in a group. In a group
    whose answers are all right the first bonus cancels in the baseline.
    """
    value, other = component(batch, accuracy, "video_r1_t_grpo"), batch["reordered"] > 0
    known = ~value.isnan()
    right = known & ~other & (value > least)
    means = [group_mean(value.nan_to_num(0).to(batch.reward), batch.group, known & rows) for rows in (~other, other)]
    compared = group_count(batch.group, known & other) > 0
    better = compared & (means[0] >= share * means[1] - 1e-9)
    several = group_count(batch.group, right) > 1
    good = right & several & (batch.length >= shortest) & (batch.length <= longest)
    zero = torch.zeros_like(batch.reward)
    return batch.reward + torch.where(right & better, bonus, zero) + torch.where(good, length_bonus, zero)
