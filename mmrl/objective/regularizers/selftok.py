"""The KL of Selftok's policy gradient: to the policy that sampled, where most others go to a reference."""

from __future__ import annotations

from torch import Tensor

from mmrl.objective.numerics import log_ratio_to
from mmrl.objective.regularizers.kl import k3
from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, stage


@stage(
    "regularizer",
    paper="Selftok: discrete visual tokens of autoregression, by diffusion, and for reasoning, arXiv 2505.07538",
    formula="exp(d) - d - 1 with d = lp_old - lp_new",
    confidence="verified",
    modalities=LANGUAGE,
)
def selftok(evaluation: Evaluation, batch: Batch) -> Tensor:
    """k3 of the rollout policy, which needs no reference model. Returns (B, T).

    Value and gradient are 0 before the first update of a batch, which is plain REINFORCE with the group's baseline.
    Coefficient .04 (appendix) or .05 (ablation: 0 diverges, .1 is slower). Source: the paper's text (read).
    """
    return k3(log_ratio_to(evaluation, batch))
