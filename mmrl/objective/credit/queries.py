"""Query groups: the things one answer names are compared with each other, as DINO-R1 compares a detector's queries."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.parts import spread_out, table
from mmrl.objective.advantages.robust import scored
from mmrl.objective.groups import group_count, group_normalized
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "credit",
    paper="DINO-R1 (GRQO), arXiv 2505.24025",
    formula="A_i + lambda (u_q - mean) / (std + eps) on the tokens of query q, over an answer's queries",
    confidence="reconstructed",
    needs=("segment", "action_reward"),
    modalities=LANGUAGE,
)
def dino_r1_grqo(
    advantage: Tensor, batch: Batch, *, weight: float = 1.0, over: str = "answer", eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Each thing that an answer names is compared with its others by its own match with the truth. (B, T)

    weight  of the query advantage beside the answer's
    over    answer: the queries of one answer, as the paper's of one picture; group: of all answers to the prompt

    A query alone adds 0. Reads `segment` (which query a token is part of) and `action_reward` (its match), as the
    reward `query_boxes` makes them. Ours: the paper's queries are those of a detector without a language model, its
    policy an objectness; here a query is a box that is written, and its policy are its tokens.
    """
    if over not in ("answer", "group"):
        raise ConfigError(f"dino_r1_grqo: over={over!r}; expected 'answer' or 'group'")
    total, size = table(batch["action_reward"], batch["segment"], batch.mask)
    worth = total / size.clamp(min=1)
    rows = torch.arange(len(worth), device=worth.device) if over == "answer" else batch.group
    pool = rows[:, None].expand_as(worth).flatten()
    there = ((size > 0) & scored(batch)[:, None]).flatten()
    compared = group_normalized(worth.flatten(), pool, there, eps)
    compared = compared.masked_fill(~there | (group_count(pool, there) < 2), 0.0).view_as(worth)
    return advantage + weight * spread_out(compared, batch["segment"], batch.mask).to(advantage.dtype), batch.loss_mask
