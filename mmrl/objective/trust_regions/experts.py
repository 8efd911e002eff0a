"""Trust regions for rows the policy did not write."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.numerics import current_log_probs, safe_exp
from mmrl.objective.trust_regions.clip import ppo
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, stage


@stage(
    "trust_region",
    paper="TGRL: trajectory-guided RL, arXiv 2603.26126; shaping: LUFFY, arXiv 2504.14945",
    formula="expert rows: A p/(p + c), p = exp(lp), no clip; others: PPO clip",
    confidence="reconstructed",
    method="tgrl",
    needs=("expert",),
    modalities=LANGUAGE,
)
def expert_shaped(
    log_ratio: Tensor,
    evaluation: Evaluation,
    batch: Batch,
    *,
    low: float = 0.2,
    high: float = 0.2,
    constant: float = 0.1,
) -> Tensor:
    """Expert tokens weigh p/(p + c), whose gradient is large where the policy finds them unlikely. Returns (B, T).

    low, high  clip of the policy's own rows
    constant   c; smaller pulls harder on unlikely expert tokens

    Reads `expert (B,)`. Reconstructed from the abstract.
    """
    probability = current_log_probs(evaluation, batch).exp()
    shaped = probability / (probability + constant) * batch.advantage
    own = ppo(safe_exp(log_ratio), batch.advantage, 1 - low, 1 + high)
    return torch.where(batch["expert"].bool()[:, None], shaped, own)
