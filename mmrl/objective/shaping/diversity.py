"""Diversity shaping: right answers that differ from the other right ones, or that the policy finds unlikely."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.credit.rollouts import component
from mmrl.objective.groups import degenerate, group_count, group_rank, masked_mean
from mmrl.objective.prefixes import action_ids
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


def mean_distance(vectors: Tensor, group: Tensor, among: Tensor) -> Tensor:
    """(B,) mean of (1 - cosine) / 2 to the other rows of the group in `among`; 0 outside it and for a row alone.

    vectors  (B, e) embeddings or counts
    """
    unit = torch.nn.functional.normalize(vectors, dim=1)
    distance = unit.new_zeros(len(unit))
    for g in torch.unique(group[among]).tolist():
        rows = (among & (group == g)).nonzero().squeeze(1)
        if len(rows) > 1:
            apart = (1 - unit[rows] @ unit[rows].T) / 2
            distance[rows] = (apart.sum(1) - apart.diagonal()) / (len(rows) - 1)
    return distance.clamp(0, 1)


def diversity_of(batch: Batch, right: Tensor, name: str | None, asked_by: str) -> Tensor:
    """(B,) in [0, 1]: the reward component `name`, or the distance of token counts among the right rollouts."""
    if name is not None:
        return component(batch, name, asked_by).nan_to_num(0).clamp(0, 1) * right
    ids = action_ids(batch, asked_by)
    seen, place = torch.unique(ids, return_inverse=True)
    counts = torch.zeros(len(ids), len(seen), dtype=batch.old_log_probs.dtype, device=ids.device)
    counts.scatter_add_(1, place, batch.mask.to(counts.dtype))
    return mean_distance(counts, batch.group, right)


@stage(
    "shaping",
    paper="DSDR: dual-scale diversity regularization, arXiv 2602.19895",
    formula="r_i + lambda clip(dv_i, 0, 1) for right rollouts, dv_i = mean distance to the other right ones",
    confidence="partly",
    needs=("success",),
)
def dsdr(batch: Batch, *, weight: float = 0.1, diversity: str | None = None) -> Tensor:
    """Right rollouts earn a bounded bonus for differing from the other right ones of their group. (B,)

    weight     less than the reward gap between right and wrong, so that any right rollout stays above any wrong one
    diversity  reward component in [0, 1], such as the distance of text or CLIP embeddings; None: cosine distance
               of the answers' token counts (ours)

    Source: abstract and a digest of the full paper (embedding similarity and formula uniqueness, clipped, right
    rollouts only); the coefficient is ours.
    """
    right = successes(batch, "dsdr") & scored(batch)
    return batch.reward + weight * diversity_of(batch, right, diversity, "dsdr").to(batch.reward.dtype)


@stage(
    "shaping",
    paper="Rewarding the Unlikely, 2025",
    formula="r_i (1 - beta k_i / G), k_i = rank of the mean log-prob in the group, 0 = least likely",
    confidence="verified",
    modalities=LANGUAGE,
)
def unlikeliness_reward(batch: Batch, *, beta: float = 0.25, skip_uniform: bool = True) -> Tensor:
    """Right rollouts that the policy already finds likely are paid less. (B,)

    beta          share that the likeliest loses
    skip_uniform  groups of equal rewards keep them: shaping would make a signal out of all-right groups

    Ranks cover the whole group, right or wrong; ties by member. The paper uses G = 32 and 2 epochs a batch.
    Source: the authors' code (AndreHe02/rewarding-unlikely-release).
    """
    where = scored(batch)
    likelihood = masked_mean(batch.old_log_probs, batch.mask)
    ranked = torch.where(where, likelihood, torch.full_like(likelihood, torch.inf))
    rank = group_rank(ranked, batch.group, ties=batch.member)
    size = group_count(batch.group, where).clamp(min=1)
    shaped = batch.reward * (1 - beta * rank / size).to(batch.reward.dtype)
    keep = degenerate(batch.reward, batch.group, where) if skip_uniform else torch.zeros_like(where)
    return torch.where(keep, batch.reward, shaped)
