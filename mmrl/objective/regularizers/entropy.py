"""Entropy and likelihood regularizers. `(evaluation, batch) -> penalty (B, T) or scalar`, to be minimised."""

from __future__ import annotations

from torch import Tensor

from mmrl.record import Batch, Evaluation
from mmrl.stages import LANGUAGE, stage


@stage(
    "regularizer",
    paper="Spotlight on Token Perception for Multimodal RL, arXiv 2510.09285",
    formula="-lp of the sampled token: a one-sample entropy, so a positive coefficient lowers entropy",
    modalities=LANGUAGE,
)
def sampled_entropy(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Minus the log-prob of the sampled tokens: VPPO adds .06 of it as an entropy penalty. (B, T)

    A positive coefficient makes the policy surer of what it sampled; a negative one is an entropy bonus in
    expectation, with the variance of one sample. Source: the authors' code (VPPO-RL, PAPO).
    """
    return -evaluation.log_probs * batch.mask
