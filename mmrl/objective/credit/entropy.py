"""Entropy credit: the policy's own uncertainty decides which tokens learn."""

from __future__ import annotations

from torch import Tensor

from mmrl.objective.credit.tokens import check_share, quantile, training_tokens
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "credit",
    "80_20_forking_tokens",
    paper="Beyond the 80/20 Rule: High-Entropy Minority Tokens, arXiv 2506.01939",
    formula="A_it * 1[H_it >= quantile(1 - q) of the entropies of the batch]",
    needs=("entropy",),
    scope="batch",
    modalities=LANGUAGE,
)
def forking_tokens(
    advantage: Tensor, batch: Batch, *, share: float = 0.2, renormalize: bool = False
) -> tuple[Tensor, Tensor]:
    """Learn from the highest-entropy tokens of the batch only. (B, T)

    share        of all training tokens; ties at the quantile are kept
    renormalize  True divides by the kept tokens, which multiplies the step by about 1 / share; False by all

    Source: arXiv 2506.01939 and TRL's `top_entropy_quantile`. TRL takes the quantile over one micro-batch of the
    current policy's entropies; here it covers the rollout batch of all ranks, so micro-batches change nothing.
    """
    check_share("share", share)
    where, entropy = training_tokens(batch), batch["entropy"]
    kept = where.clone()
    if where.any():
        kept &= entropy >= quantile(entropy[where], 1 - share)
    return advantage * kept, batch.loss_mask * kept if renormalize else batch.loss_mask
