"""GRPO-SR of GenRec: a reward model is believed only where the recommendation is relevant at all."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.credit.rollouts import component
from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "shaping",
    paper="GenRec: a preference-oriented generative framework (GRPO-SR), arXiv 2604.14878",
    formula="r = d if relevance >= tau, else min(d, c): what is irrelevant earns at most c, however the reward model "
    "likes it",
    confidence="reconstructed",
    needs=("components",),
)
def genrec_grpo_sr(
    batch: Batch, *, relevance: str = "relevance", least: float = 0.5, dense: str = "", closed: float = 0.0
) -> Tensor:
    """A dense reward behind a gate of relevance, so that the reward model cannot be hacked by what nobody asked. (B,)

    relevance  reward component that says whether an output is relevant, best of weight 0
    least      tau: from this on the gate is open
    dense      reward component behind the gate; none: the reward as it comes
    closed     what an irrelevant output earns at most

    A row whose relevance is not known is not scored. Source: the paper's abstract (hybrid rewards: a dense reward model
    with a relevance gate); threshold and the closed gate's value are ours.
    """
    near = component(batch, relevance, "genrec_grpo_sr")
    worth = component(batch, dense, "genrec_grpo_sr") if dense else batch.reward
    if dense == relevance:
        raise ConfigError(f"genrec_grpo_sr: {relevance!r} is gate and reward at once; name two components")
    gated = torch.where(near >= least, worth, worth.clamp(max=closed))
    gated = torch.where(near.isnan(), near.to(gated), gated)
    return torch.where(torch.isnan(batch.reward), batch.reward, gated.to(batch.reward))
