"""Several rewards at once: normalise each apart, then add."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import degenerate, group_normalized
from mmrl.objective.numerics import whole_rewards
from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "advantage",
    paper="GDPO: group reward-decoupled normalization, arXiv 2601.05242",
    formula="P = sum_k w_k (R_k - mean_g) / (std_g + eps); A = (P - mean_batch P) / (std_batch P + eps)",
    confidence="verified",
    scope="batch",
    relative=True,
    needs=("components",),
)
def gdpo_decoupled(
    batch: Batch,
    *,
    weights: dict[str, float] | None = None,
    given: dict[str, str] | None = None,
    threshold: float = 1.0,
    eps: float = 1e-4,
    ddof: int = 1,
    skip_single: bool = False,
) -> Tensor:
    """Each reward component normalised in its group, then summed, then standardised over the batch. Returns (B,).

    weights      {component: weight}; components left out weigh nothing. None: the run's rewards, or where
                 there is one, all that it tells, each 1
    given        {easy: hard}: the easy component counts only where the hard one reaches `threshold`
    ddof         1 unbiased; 0 with LightningRL
    skip_single  with one component skip the batch standardisation: plain GRPO, as the authors' fork

    A component that is constant in a group contributes 0 there; a NaN component leaves that row's term out.
    Source: NVlabs/GDPO, TRL's multi-objective aggregation. verl whitens over tokens instead, so that long
    answers weigh more.
    """
    weights = weights or dict.fromkeys(whole_rewards(batch.components), 1.0)
    for name in weights:
        if name not in batch.components:
            raise ConfigError(f"gdpo_decoupled: {unknown('reward component', name, batch.components)}")
    total = torch.zeros_like(batch.reward)
    for name, weight in weights.items():
        values = _conditioned(batch, name, (given or {}).get(name), threshold)
        flat = degenerate(values, batch.group, batch.counted)
        term = group_normalized(values, batch.group, batch.counted, eps, ddof)
        total = total + weight * torch.where(flat, torch.zeros_like(term), term).to(total)
    if skip_single and len(weights) == 1:
        return total
    everyone = torch.zeros_like(batch.group)
    return group_normalized(total, everyone, batch.counted, eps, ddof)


def _conditioned(batch: Batch, easy: str, hard: str | None, threshold: float) -> Tensor:
    values = batch.components[easy]
    if hard is None:
        return values
    if hard not in batch.components:
        raise ConfigError(f"gdpo_decoupled: {unknown('reward component', hard, batch.components)}")
    return values * (batch.components[hard] >= threshold)


@stage(
    "advantage",
    paper="LightningRL, arXiv 2603.13319",
    formula="R = z_g(accuracy) + z_g(speed), population deviation, 0 if constant; A = z_batch(R - mean_g)",
    confidence="verified",
    scope="batch",
    relative=True,
    needs=("components",),
)
def lightningrl(batch: Batch, *, accuracy: str = "accuracy", speed: str = "tokens_per_forward") -> Tensor:
    """Accuracy and decoding speed, each z-scored in its group, then z-scored over the batch. Returns (B,).

    accuracy, speed  names of the two reward components

    Source: SJTU-DENG-Lab/LightningRL, reward/rl_code_reward.py.
    """
    return gdpo_decoupled(batch, weights={accuracy: 1.0, speed: 1.0}, eps=1e-8, ddof=0)
