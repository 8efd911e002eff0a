"""What a turn is worth once the outcome is known."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmrl.objective.advantages.group import on_last_action
from mmrl.record import Batch
from mmrl.rollout.environments.tagged_tools import PLANNING
from mmrl.rollout.hints import worth
from mmrl.rollout.plan import Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "turn_rewards",
    paper="RLVMR: verifiable meta-reasoning rewards, 2025",
    formula="action_reward + outcome r on the last action + planning [the rollout is right] on turns that plan",
    confidence="ours",
    modalities=LANGUAGE,
)
class TurnRewards(Strategy):
    """Adds to the `action_reward` of an environment what only the end of a rollout says.

    outcome   times the reward, on a rollout's last action: a return over turns then holds it
    planning  for each turn that `tag` calls a plan, in a rollout that is right

    Without an environment that gives one, `action_reward` begins at 0. Unscored rows earn nothing here.
    """

    origins = ()
    made = ("action_reward",)

    def __init__(self, *, outcome: float = 0.0, planning: float = 0.0) -> None:
        self.outcome, self.planning = outcome, planning

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        given = batch["action_reward"] if "action_reward" in batch else torch.zeros_like(batch.old_log_probs)
        made = given + on_last_action(self.outcome * batch.reward.nan_to_num(0), batch.mask).to(given)
        if self.planning:
            right = (worth(batch) > 0)[:, None] & batch.mask
            made = made + self.planning * (right & (batch["tag"] == PLANNING) & last_of_segments(batch))
        return {"action_reward": made}


def last_of_segments(batch: Batch) -> Tensor:
    """(B, T) bool: the last action of each segment of a row."""
    segment = torch.where(batch.mask, batch["segment"], -1)
    last = torch.zeros_like(batch.mask)
    rows = torch.arange(len(segment), device=segment.device)
    later = torch.full_like(segment[:, :1], -1).squeeze(1)
    for t in range(segment.shape[1] - 1, -1, -1):
        here = segment[:, t]
        last[rows, t] = (here >= 0) & (here != later)
        later = torch.where(here >= 0, here, later)
    return last
