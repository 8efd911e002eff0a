"""Advantages from a tree of rollouts: a leaf is compared with its siblings at every depth."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.group import whiten as over_tokens
from mmrl.objective.advantages.robust import scored
from mmrl.objective.groups import group_centred, group_count
from mmrl.objective.prefixes import prefix_nodes
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "advantage",
    paper="TreePO, arXiv 2508.17445",
    formula="mean over depths d (weighted by |g_d| or not) of r_i - mean r over the leaves below i's ancestor at d; "
    "whitened over tokens",
    confidence="verified",
    scope="batch",
    relative=True,
    needs=("actions",),
    modalities=LANGUAGE,
)
def treepo(
    batch: Batch, *, segment: int = 512, weighting: str = "average", whiten: bool = True, eps: float = 1e-8
) -> Tensor:
    """Reward minus the mean of its sub-tree, averaged over the depths of a tree of fixed-length segments.

    segment    actions in a segment of the tree
    weighting  average of the depths, or size (by the leaves of each sub-tree)
    whiten     standardise over the tokens of the batch, so that a long rollout counts once for each of its tokens

    Returns (B,), or (B, T) constant along a row where whitened. Depth 0 (the prompt's group) always counts, deeper
    ones where more than one leaf shares them. The tree is read from the action ids. Source: the authors' code.
    """
    if weighting not in ("average", "size"):
        raise ConfigError(f"treepo: {unknown('weighting', weighting, ('average', 'size'))}")
    where, nodes = scored(batch), prefix_nodes(batch, segment, "treepo")
    total, weights = torch.zeros_like(batch.reward), torch.zeros_like(batch.reward)
    for d in range(nodes.shape[1]):
        size = group_count(nodes[:, d], where)
        counts = size > 1 if d else torch.ones_like(where)
        share = counts * (size if weighting == "size" else 1)
        total = total + share * group_centred(batch.reward, nodes[:, d], where)
        weights = weights + share
    advantage = torch.where(where, total / weights.clamp(min=1), torch.zeros_like(total))
    if not whiten:
        return advantage
    tokens = batch.mask & where[:, None]
    return over_tokens(advantage[:, None].expand(tokens.shape), tokens, eps)
