"""Group selection: who counts and who trains, after the rewards are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import (
    degenerate,
    group_count,
    group_mean,
    group_median,
    group_rank,
)
from mmrl.record import Batch, Selection
from mmrl.stages import LANGUAGE, stage


def after_advantage(function: Any) -> Any:
    """Marks a selection that reads advantages, so it runs behind stage 5."""
    function.after_advantage = True
    return function


@stage(
    "group",
    paper="DAPO, arXiv 2503.14476",
    formula="keep a prompt iff its outcomes differ and low < mean outcome < high",
    confidence="verified",
    method="dapo",
)
def dynamic_sampling(
    batch: Batch, *, by: str | None = None, flat: bool = True, low: float | None = None, high: float | None = None
) -> Selection:
    """Drop groups whose members all score alike. Rollout strategy `dynamic_sampling` asks for others in their place.

    by         what must differ: "reward", "success" or a reward component; None: success where the group has
               any, else reward, so that length shaping does not keep a group that is all right or all wrong
    flat       drop groups without spread; False leaves that to the bounds, as NGRPO does, which learns from the
               all-wrong groups and drops the all-right ones
    low, high  keep only groups whose mean lies strictly between; None: no bound. VPPO uses .01 and .99

    A dropped group leaves baselines and loss. Source: arXiv 2503.14476, section 3.2; bounds from EasyR1.
    """
    values = _outcome(batch, by)
    mean = group_mean(values, batch.group, batch.counted)
    drop = degenerate(values, batch.group, batch.counted) if flat else group_count(batch.group, batch.counted) == 0
    drop |= mean <= low if low is not None else False
    drop |= mean >= high if high is not None else False
    return Selection(counted=batch.counted & ~drop, trained=batch.trained & ~drop)


@stage(
    "group",
    paper="DAPO, arXiv 2503.14476",
    formula="responses cut at the length limit leave the loss and stay in the baseline",
    confidence="verified",
    method="dapo",
    modalities=LANGUAGE,
)
def overlong_filter(batch: Batch) -> Selection:
    """Truncated responses leave the loss: their reward says nothing about the reasoning that was cut.

    Source: arXiv 2503.14476, section 3.4; TRL's `mask_truncated_completions`.
    """
    return Selection(trained=batch.trained & ~batch.truncated)


def _outcome(batch: Batch, by: str | None) -> Tensor:
    """(B,) what `by` names; None: success in groups that have any, else reward."""
    offered = {"reward": batch.reward, "success": batch.success, **batch.components}
    offered = {name: values for name, values in offered.items() if values is not None}
    if by is None and "success" in offered and "reward" in offered:
        verifiable = group_count(batch.group, batch.counted & ~torch.isnan(batch.success)) > 0
        return torch.where(verifiable, batch.success.to(batch.reward.dtype), batch.reward)
    by = by or next(iter(offered), "reward")
    if by not in offered:
        raise ConfigError(f"dynamic_sampling: {unknown('outcome', by, offered)}")
    return offered[by]


@stage(
    "group",
    paper="MC-GRPO: Median-Centered GRPO for small-rollout RL, arXiv 2601.22582",
    formula="the row whose reward is the group's median leaves the loss, and stays in the baseline",
    confidence="verified",
    method="mc_grpo",
)
def mc_grpo_pivot(batch: Batch) -> Selection:
    """Sample one rollout more than you train on: the median row, whose advantage is 0, leaves the loss.

    Among rows tied at the median the lowest member goes. Use an odd `group_size`. Source: the authors' code.
    """
    where = batch.counted & ~torch.isnan(batch.reward)
    at_median = where & (batch.reward == group_median(batch.reward, batch.group, where))
    place = torch.where(at_median, batch.member, torch.iinfo(torch.long).max)
    pivot = at_median & (group_rank(place, batch.group) == 0)
    return Selection(trained=batch.trained & ~pivot)


@stage(
    "group",
    paper="The Surprising Effectiveness of Negative Reinforcement, arXiv 2506.01347",
    formula="rows whose advantage is 0 leave the loss and its denominators",
    confidence="verified",
    method="psr_nsr_w_reinforce",
)
@after_advantage
def drop_zero_advantage(batch: Batch) -> Selection:
    """Rows without advantage leave the loss, so that the mean is over the rows that are left.

    Source: the authors' code (RLVR-Decomposed) for PSR and NSR.
    """
    return Selection(trained=batch.trained & (batch.advantage != 0).any(1))
