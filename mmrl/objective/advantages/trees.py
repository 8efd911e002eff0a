"""Advantages from a tree of rollouts: a leaf is compared with its siblings at every depth."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.group import whiten as over_tokens
from mmrl.objective.advantages.robust import scored
from mmrl.objective.groups import group_centred, group_count, group_mean, group_std
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


@stage(
    "advantage",
    paper="DeepSearch: MCTS in the training loop, arXiv 2509.25454; code smiles724/DeepSearch",
    formula="A_it = v(state behind t's segment) - mean_g v(ends), over std_g v(ends) + eps where asked for",
    confidence="verified",
    needs=("node_value",),
    modalities=LANGUAGE,
    grain="action",
)
def deepsearch(batch: Batch, *, std: bool = False, eps: float = 1e-6) -> Tensor:
    """What the search made of each state, against the ends that it chose for the group. (B, T)

    std  divide by the deviation of the ends' values; the authors' run does not

    Reads `node_value (B, T)` of rollout `deepsearch`; rows that count are its chosen ends. Population deviation, and a
    single end keeps its values. Source: the authors' code (advantage_fn.py, round0.sh).
    """
    where = scored(batch)
    last = batch.mask.long().cumsum(1).argmax(1, keepdim=True)
    ends = batch["node_value"].gather(1, last)[:, 0].to(batch.reward)
    alone = group_count(batch.group, where) < 2
    mean = torch.where(alone, 0.0, group_mean(ends, batch.group, where))
    spread = torch.where(alone, 1.0, group_std(ends, batch.group, where, 0)) if std else torch.ones_like(ends)
    advantage = (batch["node_value"].to(ends) - mean[:, None]) / (spread + (eps if std else 0.0))[:, None]
    return advantage * (batch.mask & where[:, None])
