"""Several metrics of one output, brought to one scale before they are added."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import group_std
from mmrl.objective.numerics import whole_rewards
from mmrl.record import Batch
from mmrl.stages import stage

LEAST_SPREAD = 1e-6


@stage(
    "shaping",
    paper="FlowSE-GRPO: RL for speech flow matching, arXiv 2601.16483",
    formula="R_i = sum_m w_m r_mi / std_batch(r_m); a metric whose std is at most 1e-6, or a value that is not finite, "
    "adds 0",
    confidence="reconstructed",
    scope="batch",
    needs=("components",),
)
def flowse_grpo(batch: Batch, *, weights: dict[str, float] | None = None) -> Tensor:
    """Reward components divided by their spread over the batch, not centred, and added: none drowns another. (B,)

    weights  {component: weight}; null: the run's rewards, or where there is one, all that it tells, 1 each. The
             paper's are equal; for a gain over the noisy input let the reward be quality minus that of the input

    One metric alone is hacked fast (DNSMOS, speaker similarity and SpeechBERTScore are the paper's three). Rows that
    were not scored stay so. Source: two public re-implementations that cite equations 6 and 8.
    """
    chosen = weights or dict.fromkeys(whole_rewards(batch.components), 1.0)
    total = torch.zeros_like(batch.reward)
    for name, weight in chosen.items():
        if name not in batch.components:
            raise ConfigError(f"flowse_grpo: {unknown('reward component', name, batch.components)}")
        values = batch.components[name].to(total)
        good = torch.isfinite(values) & batch.counted
        spread = group_std(values, torch.zeros_like(batch.group), good, ddof=0)
        varies = good & (spread > LEAST_SPREAD)
        total = total + weight * torch.where(varies, values / spread.clamp(min=LEAST_SPREAD), 0.0)
    return torch.where(torch.isnan(batch.reward), batch.reward, total)
