"""Progress that is paid step by step, and cannot change which policy is best."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.group import on_last_action
from mmrl.record import Batch
from mmrl.rollout.plan import Strategy
from mmrl.rollout.turn_rewards import last_of_segments
from mmrl.stages import LANGUAGE, stage


def shaped_steps(progress: Tensor, last: Tensor, gamma: float, begin: float, end: float | None) -> Tensor:
    """(B, T) gamma Phi(s') - Phi(s) on the last action of each step, 0 elsewhere.

    progress  (B, T), Phi of the state that a step leads to, read where `last (B, T)` is True
    begin     Phi of the state before the first step
    end       Phi of the state in which a row ends; None: what `progress` says of it

    With K steps the sum of gamma^k F_k is gamma^K Phi(end) - Phi(begin), whatever lies between.
    """
    made, before = torch.zeros_like(progress), torch.full_like(progress[:, 0], begin)
    final = last & (last.flip(1).long().cumsum(1).flip(1) == 1)
    for t in range(progress.shape[1]):
        after = progress[:, t] if end is None else torch.where(final[:, t], end, progress[:, t])
        made[:, t] = torch.where(last[:, t], gamma * after - before, 0.0)
        before = torch.where(last[:, t], after, before)
    return made


@stage(
    "rollout",
    "robo_dopamine",
    paper="Robo-Dopamine: General Process Reward Modeling for High-Precision Robotic Manipulation, arXiv 2512.23703",
    formula="action_reward + w (gamma Phi(s') - Phi(s)) on each step's last action, + outcome r on a rollout's last",
    confidence="reconstructed",
    needs=("segment", "progress"),
    modalities=LANGUAGE,
)
class RoboDopamine(Strategy):
    """Adds to `action_reward` what each step gained in progress, as differences of a potential.

    gamma     the discount of the returns that read it, such as `discount` of advantage `trloo`; with another one the
              shaping is no longer neutral
    weight    of the differences
    outcome   times the reward, on a rollout's last action
    end       Phi where a rollout ends. 0 is what makes the best policy stay the best (Ng, Harada and Russell 1999):
              returns from a step on then are those of the outcome less Phi there. None keeps the last progress, so that
              rollouts that end further on earn more
    begin     Phi before the first step

    Reads `progress (B, T)`, Phi of the state a step leads to: reward `step_progress`, an environment, or a reward of
    yours. A step with an unknown Phi is refused. Source: the paper's abstract and README (policy-invariant shaping of a
    progress model's output); its model of pairs of views is not here.
    """

    origins = ()
    made = ("action_reward",)

    def __init__(
        self, *, gamma: float = 1.0, weight: float = 1.0, outcome: float = 1.0, end: float | None = 0.0,
        begin: float = 0.0,
    ) -> None:  # fmt: skip
        if not 0 < gamma <= 1:
            raise ConfigError(f"rollout 'robo_dopamine': gamma={gamma}; expected above 0, at most 1")
        self.gamma, self.weight, self.outcome, self.end, self.begin = gamma, weight, outcome, end, begin

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        progress, last = batch["progress"], last_of_segments(batch)
        if bool((progress.isnan() & last).any()):
            row = int((progress.isnan() & last).any(1).nonzero()[0])
            raise ConfigError(f"rollout 'robo_dopamine': row {row} has a step whose `progress` is not a number")
        given = batch["action_reward"] if "action_reward" in batch else torch.zeros_like(batch.old_log_probs)
        steps = shaped_steps(progress.to(given), last, self.gamma, self.begin, self.end)
        earned = on_last_action(self.outcome * batch.reward.nan_to_num(0), batch.mask).to(given)
        return {"action_reward": given + self.weight * steps + earned}
