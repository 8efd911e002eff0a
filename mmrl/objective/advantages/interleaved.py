"""Advantages of rows in which text and pictures take turns: each turn has a reward, and earns those behind it too."""

from __future__ import annotations

from torch import Tensor

from mmrl.objective.advantages.parts import spread_out, table
from mmrl.objective.groups import group_normalized
from mmrl.objective.numerics import later_sum
from mmrl.record import Batch
from mmrl.stages import stage


@stage(
    "advantage",
    paper="Towards Unified Multimodal Interleaved Generation via GRPO, arXiv 2603.09538",
    formula="A_it = sum over the segments j that end at t or later of (r_ij - mean) / (std + eps), over all segments "
    "of all rows of the group",
    confidence="partly",
    needs=("segment", "action_reward"),
    grain="action",
    relative=True,
)
def interleaved_grpo(batch: Batch, *, eps: float = 1e-6, ddof: int = 0) -> Tensor:
    """What a segment is worth is compared with every segment of the group, and actions earn what follows. (B, T)

    Segments are runs of text or of a picture, numbered by `segment`; `action_reward` holds what the judges of text, of
    picture given text, and of form say of each. One ratio an action, whatever it writes; where text and picture are
    actions of two likelihoods, `objective.kinds` gives each a mean of its own, so that a thousand picture tokens do not
    drown forty words, and this advantage to both. Actions of no segment get 0. Source: detailed notes on the paper;
    its eps was not read.
    """
    rewards, size = table(batch["action_reward"], batch["segment"], batch.mask)
    valid = ((size > 0) & batch.counted[:, None]).flatten()
    group = batch.group[:, None].expand_as(rewards).flatten()
    normal = group_normalized(rewards.flatten(), group, valid, eps, ddof).view_as(rewards) * valid.view_as(rewards)
    return spread_out(later_sum(normal, 1.0), batch["segment"], batch.mask)
