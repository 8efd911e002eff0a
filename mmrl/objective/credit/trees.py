"""Credit from prefix values: what the reward expectation gained or lost between two points of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.parts import spread_out
from mmrl.objective.advantages.robust import scored
from mmrl.objective.credit.tokens import training_tokens
from mmrl.objective.groups import degenerate, group_mean, group_rank, group_std
from mmrl.objective.numerics import position
from mmrl.objective.prefixes import prefix_mean, prefix_nodes
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "credit",
    paper="TEMPO: prefix-tree values with branch-gated TD, arXiv 2509.18314",
    formula="[(r_i - mean r) + V(y_<=t) - V(y_<t)] / (std r + eps), V(prefix) = mean r of the rollouts sharing it",
    confidence="verified",
    needs=("actions",),
    modalities=LANGUAGE,
)
def tempo(advantage: Tensor, batch: Batch, *, std: bool = True, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The group advantage plus a TD term at tokens where the group branches; replaces the incoming advantage. (B, T)

    std  divide by the group's deviation; False is the paper's option without

    Independent samples branch in their first tokens only: combine with tree rollouts. Source: the authors' code.
    """
    where = scored(batch)
    value = prefix_mean(batch.reward, batch, where, "tempo")
    mean = group_mean(batch.reward, batch.group, where)[:, None]
    difference = value - torch.cat([mean, value[:, :-1]], dim=1)
    total = (batch.reward.nan_to_num(0)[:, None] - mean) + difference
    if std:
        total = total / (group_std(batch.reward, batch.group, where)[:, None] + eps)
    alive = where & ~degenerate(batch.reward, batch.group, where)
    return (total * (batch.mask & alive[:, None])).to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    "spo_segment",
    paper="SPO: Segment Policy Optimization, arXiv 2505.23564",
    formula="A_t = V(end of the segment) - V(its start); loss on tokens with p_old < .9",
    confidence="verified",
    needs=("actions",),
    modalities=LANGUAGE,
)
def spo_segment(
    advantage: Tensor,
    batch: Batch,
    *,
    interval: int = 5,
    unsure: float = 0.9,
    probability_mask: bool = True,
) -> tuple[Tensor, Tensor]:
    """Chain form: a segment earns what the Monte-Carlo value gained between its cut points. (B, T)

    interval          unsure tokens in a segment; the last of them ends it
    unsure            tokens of a lower probability are unsure
    probability_mask  only unsure tokens enter loss and denominator (all tokens if none is unsure)

    The value at a cut is the mean reward of the group's rollouts that share the prefix up to it (continuations
    sampled from it); at the prompt the group's mean, at the end the rollout's own reward. Replaces the incoming
    advantage. Source: the authors' code.
    """
    where = scored(batch)
    value = prefix_mean(batch.reward, batch, where, "spo_segment")
    doubt = batch.mask & (batch.old_log_probs.exp() < unsure)
    cut = doubt & (position(doubt) % interval == 0)
    segment = (cut.long().cumsum(1) - cut.long()).masked_fill(~batch.mask, -1)
    last = segment.amax(1, keepdim=True)
    ends = value.new_zeros(len(value), int(segment.max().clamp(min=0)) + 2)
    ends[:, 0] = group_mean(batch.reward, batch.group, where)
    rows, columns = cut.nonzero(as_tuple=True)
    ends[rows, segment[rows, columns] + 1] = value[rows, columns]
    ends.scatter_(1, last.clamp(min=0) + 1, batch.reward.nan_to_num(0)[:, None])
    gained = spread_out(ends[:, 1:] - ends[:, :-1], segment, batch.mask) * where[:, None]
    return gained.to(advantage.dtype), _unsure_mask(batch, doubt) if probability_mask else batch.loss_mask


@stage(
    "credit",
    "spo_tree",
    paper="SPO: Segment Policy Optimization, arXiv 2505.23564",
    formula="A(child) = V(child) - V(parent), V(node) = mean over its children; each edge trains once",
    confidence="verified",
    method="spo_segment",
    scope="batch",
    needs=("actions",),
    modalities=LANGUAGE,
)
def spo_tree(
    advantage: Tensor,
    batch: Batch,
    *,
    segment: int = 512,
    baseline: str = "rloo",
    unsure: float = 0.9,
    probability_mask: bool = True,
) -> tuple[Tensor, Tensor]:
    """Tree form: siblings that share a prefix are compared with each other, segment by segment. (B, T)

    segment   actions in a segment of the tree
    baseline  rloo (difference) or grpo (divided by the deviation of the siblings' values)
    unsure, probability_mask  as in `spo_segment`

    A shared segment trains in the row of its lowest member. The tree is read from the action ids. Replaces the
    incoming advantage. Source: the authors' code.
    """
    if baseline not in ("rloo", "grpo"):
        raise ConfigError(f"spo_tree: {unknown('baseline', baseline, ('rloo', 'grpo'))}")
    where, nodes = scored(batch), prefix_nodes(batch, segment, "spo_tree")
    value, owned = batch.reward.nan_to_num(0), torch.zeros_like(batch.mask)
    steps = []
    for d in range(nodes.shape[1] - 1, 0, -1):
        first = where & (group_rank(torch.where(where, batch.member, 1 << 40), nodes[:, d]) == 0)
        above = group_mean(value, nodes[:, d - 1], first)
        step = value - above
        if baseline == "grpo":
            step = step / (group_std(value, nodes[:, d - 1], first) + 1e-8)
        owned[:, (d - 1) * segment : d * segment] = first[:, None]
        steps.append(step * where)
        value = above
    place = torch.arange(batch.mask.shape[1], device=value.device) // segment
    gained = torch.stack(steps[::-1], dim=1)[:, place.clamp(max=len(steps) - 1)] * batch.mask
    doubt = batch.mask & (batch.old_log_probs.exp() < unsure)
    mask = _unsure_mask(batch, doubt) if probability_mask else batch.loss_mask
    return (gained * owned).to(advantage.dtype), mask * owned


def _unsure_mask(batch: Batch, doubt: Tensor) -> Tensor:
    """The loss mask on unsure tokens, unless no training token is unsure."""
    return batch.loss_mask * doubt if (training_tokens(batch) & doubt).any() else batch.loss_mask
