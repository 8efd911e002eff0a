"""Advantages of episodes that span several rows: baselines are over episodes, whose rows share what came of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.episodes import shared
from mmrl.objective.groups import group_normalized
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "advantage",
    paper="SUPO: summarization augmented policy optimization, arXiv 2510.06727",
    formula="A of all rows of episode i = (r_i - mean_g) / (std_g + eps), statistics over the episodes of a group",
    confidence="partly",
    needs=("episode",),
    modalities=LANGUAGE,
)
def supo(batch: Batch, *, eps: float = 1e-6, ddof: int = 1) -> Tensor:
    """Group-standardised reward of episodes, on every piece and summary of them. (B,)

    eps   added to the deviation
    ddof  1 unbiased, 0 population

    The rows that count are the last of their episodes, as rollout `supo` leaves them; those that were cut for good
    are among them. An episode of a single row gets what `grpo` gives. Source: equation 3 as re-implemented by others.
    """
    worth = group_normalized(batch.reward, batch.group, batch.counted, eps, ddof)
    return shared(worth, batch, batch.counted)


@stage(
    "advantage",
    paper="M-GRPO: hierarchical multi-agent GRPO, arXiv 2511.13288; code AQ-MedAI/MrlX",
    formula="main agent: A of all its rows = (r_i - mean) / (std + eps) over the episodes of a group; sub-agent: the "
    "same over the calls of a group, of r = 0 if malformed, 1 if the episode was right, else `wrong`",
    confidence="partly",
    needs=("episode", "sub", "success"),
    modalities=LANGUAGE,
)
def m_grpo(batch: Batch, *, wrong: float = 0.1, eps: float = 1e-6) -> Tensor:
    """Two groups in one: episodes are compared with episodes, calls of sub-agents with calls. (B,)

    wrong  what a well-formed call is worth whose episode came to nothing

    Rows of the main agent that count are the last of their episodes. `sub (B,)` is 0 on rows of the main agent, 1 on
    a call that reads well and 2 on a malformed one, as rollout `m_grpo` sets it. A call whose episode was not scored
    earns nothing. Source: the released code's reward of a sub-agent; the groups are the paper's.
    """
    if not 0 <= wrong <= 1:
        raise ConfigError(f"m_grpo: wrong={wrong}; expected 0 to 1")
    assert batch.success is not None
    sub, ends = batch["sub"] > 0, batch.counted
    worth = group_normalized(batch.reward, batch.group, ends, eps)
    earned = sub_rewards(batch["sub"], shared(batch.success, batch, ends), wrong).to(batch.reward)
    calls = sub & batch.trained & (shared(ends.to(worth), batch, ends) > 0)
    return torch.where(sub, group_normalized(earned, batch.group, calls, eps), shared(worth, batch, ends))


def sub_rewards(sub: Tensor, success: Tensor, wrong: float) -> Tensor:
    """(B,) of calls: 0 where malformed (`sub` 2), else 1 where their episode was right, else `wrong`."""
    well = torch.where(success > 0.5, torch.ones_like(success), torch.full_like(success, wrong))
    return torch.where(sub == 2, torch.zeros_like(well), well)
