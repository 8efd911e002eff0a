"""Choosing tokens: the helpers every token-credit function shares.

A statistic over tokens covers the actions that train: sampled by the policy, in rows of the loss. Ties are
broken by `row_uniform` noise, keyed by the rollout, so a choice depends neither on the order of the rows nor on
how ranks split them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch


def training_tokens(batch: Batch) -> Tensor:
    """(B, T) bool: sampled by the policy, in rows that train."""
    return batch.mask & batch.trained.bool()[:, None]


def check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name}={share}: expected a share between 0 and 1")


def count_of(share: float, total: int) -> int:
    """ceil(share * total), where 0.3 * 10 is 3 and not the 4 of its float rounding."""
    return math.ceil(share * total - 1e-9)


def top_tokens(scores: Tensor, where: Tensor, share: float, ties: Tensor) -> Tensor:
    """(B, T) bool: exactly ceil(share * N) of the N tokens in `where`, the highest scores; `ties` decides equals."""
    return top_count(scores, where, count_of(share, int(where.sum())), ties)


def top_count(scores: Tensor, where: Tensor, count: int, ties: Tensor) -> Tensor:
    """(B, T) bool: the `count` tokens of `where` with the highest scores (all of them if fewer)."""
    places = where.flatten().nonzero().squeeze(1)
    order = torch.argsort(ties.flatten()[places])
    order = order[torch.argsort(scores.flatten()[places][order], descending=True, stable=True)]
    chosen = torch.zeros(where.numel(), dtype=torch.bool, device=where.device)
    chosen[places[order[:count]]] = True
    return chosen.view(where.shape)


def top_tokens_per_row(scores: Tensor, where: Tensor, share: float, ties: Tensor) -> Tensor:
    """(B, T) bool: ceil(share * n_i) tokens of each row, the highest scores; `ties` decides equals."""
    kept = [count_of(share, n) for n in where.sum(1).tolist()]
    order = torch.argsort(ties, dim=1)
    ranked = torch.where(where, scores, torch.full_like(scores, -torch.inf)).gather(1, order)
    order = order.gather(1, torch.argsort(ranked, dim=1, descending=True, stable=True))
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return where & (place < torch.tensor(kept, device=place.device)[:, None])


def quantile(values: Tensor, probability: float) -> Tensor:
    """Scalar: linear interpolation between order statistics; `torch.quantile` refuses more than 2^24 values."""
    ordered = values.sort().values
    position = probability * (len(ordered) - 1)
    low = int(position)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], position - low)


def progress(batch: Batch) -> float:
    """Share of the run that is done: 0 at the first step, 1 at the last."""
    return min(batch.step / max(batch.steps - 1, 1), 1.0)
