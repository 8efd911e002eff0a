"""Which of the policy's own rollouts are imitated: the target of a supervised loss, as a weight of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.robust import scored
from mmrl.objective.groups import degenerate, group_count, group_extreme, group_rank, group_sum
from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "advantage",
    paper="PA-RL: policy agnostic RL, arXiv 2412.06685; code MaxSobolMark/PolicyAgnosticRL",
    formula="A_i = n q_i: q = 1 on the group's best, or exp(r / tau) over its `keep` best, renormalised; 0 elsewhere",
    confidence="partly",
)
def pa_rl(batch: Batch, *, keep: int = 10, temperature: float | None = None) -> Tensor:
    """Re-ranked samples as the target of a supervised loss: n times the share that each member has of it. (B,)

    keep         members of a group that may be imitated, the best; among equals the earlier
    temperature  of the softmax over their rewards; null: the best alone

    With trust region `reinforce` and `aggregation: sequence_mean` the loss is the mean over prompts of the expected
    negative log-likelihood under that target; with matching objective `imitation`, of the expected flow-matching loss.
    Whatever re-ranks, a verifier or a learned critic, is a reward. No row is ever pushed away. Source:
    action_optimization.py (32 samples, the 10 best by the critic, the best is distilled); groups in which nobody is
    worth more than another teach nothing, which is ours.
    """
    if keep < 1 or (temperature is not None and temperature <= 0):
        raise ConfigError(f"pa_rl: keep={keep}, temperature={temperature}; expected at least 1, and above 0 or null")
    where = scored(batch)
    ranked = where & ~degenerate(batch.reward, batch.group, where)
    worth = batch.reward.masked_fill(~where, -torch.inf)
    place = group_rank(-worth, batch.group, ties=batch.member)
    if temperature is None:
        share = (ranked & (place == 0)).to(batch.reward)
    else:
        best = group_extreme(batch.reward, batch.group, where)
        weight = torch.exp((batch.reward - best) / temperature).masked_fill(~(ranked & (place < keep)), 0.0)
        share = weight / group_sum(weight, batch.group).clamp(min=torch.finfo(weight.dtype).tiny)
    return share * group_count(batch.group, where).to(share)
