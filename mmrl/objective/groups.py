"""Statistics over ragged groups: the only place where `group (B,)` is reduced.

Every function takes values `(B,)` and `group (B,)` of any ids in any order, and an optional `where (B,)` of
rows that count. Rows of a group without counted members get 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _index(values: Tensor, group: Tensor) -> tuple[Tensor, int]:
    if values.shape[:1] != group.shape:
        raise ValueError(f"values have {tuple(values.shape)} rows but group has {tuple(group.shape)}; expected (B,)")
    ids, inverse = torch.unique(group, return_inverse=True)
    return inverse, len(ids)


def _counted(values: Tensor, where: Tensor | None) -> Tensor:
    counted = ~torch.isnan(values) if values.is_floating_point() else torch.ones_like(values, dtype=torch.bool)
    return counted if where is None else counted & where.bool()


def group_sum(values: Tensor, group: Tensor, where: Tensor | None = None) -> Tensor:
    """(B,) sum over the row's group; NaN values do not count."""
    inverse, n = _index(values, group)
    kept = torch.where(_counted(values, where), values, torch.zeros_like(values))
    return kept.new_zeros(n).index_add_(0, inverse, kept)[inverse]


def group_count(group: Tensor, where: Tensor | None = None) -> Tensor:
    """(B,) counted members of the row's group."""
    ones = torch.ones_like(group, dtype=torch.long)
    inverse, n = _index(ones, group)
    kept = ones if where is None else ones * where.to(ones.dtype)
    return kept.new_zeros(n).index_add_(0, inverse, kept)[inverse]


def group_mean(values: Tensor, group: Tensor, where: Tensor | None = None) -> Tensor:
    """(B,) mean over the row's group; of equal values it is the value, to the last bit.

    Eight times .35 in float32 add up to a mean that is off by its rounding, and so is their deviation: one over the
    other, with a small eps, would be an advantage of .75 that all members have.
    """
    counted = _counted(values, where)
    mean = group_sum(values, group, counted) / group_count(group, counted).clamp(min=1)
    return mean if not values.is_floating_point() else _exact(mean, values, group, counted)


def group_average(values: Tensor, weight: Tensor, group: Tensor, where: Tensor | None = None) -> Tensor:
    """(B,) mean over the row's group under `weight (B,)`, 0 or more; of equal values exactly the value."""
    counted = _counted(values, where)
    total = group_sum(weight, group, counted)
    mean = group_sum(weight * values, group, counted) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return _exact(mean, values, group, counted & (weight > 0))


def _exact(mean: Tensor, values: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """The mean, or where all counted values of a group are equal that value."""
    least = group_extreme(values, group, counted, largest=False)
    return torch.where(least == group_extreme(values, group, counted), least, mean)


def group_std(values: Tensor, group: Tensor, where: Tensor | None = None, ddof: int = 1) -> Tensor:
    """(B,) standard deviation over the row's group; 0, without gradient, where all are equal or only `ddof` count."""
    counted = _counted(values, where)
    centred = torch.where(counted, values - group_mean(values, group, counted), torch.zeros_like(values))
    freedom = group_count(group, counted) - ddof
    variance = group_sum(centred**2, group, counted) / freedom.clamp(min=1)
    varies = (freedom > 0) & (variance > 0)
    root = torch.where(varies, variance, torch.ones_like(variance)).sqrt()
    return torch.where(varies, root, torch.zeros_like(variance))


def group_extreme(values: Tensor, group: Tensor, where: Tensor | None = None, largest: bool = True) -> Tensor:
    """(B,) maximum (or minimum) over the counted members of the row's group."""
    inverse, n = _index(values, group)
    empty = float("-inf") if largest else float("inf")
    kept = torch.where(_counted(values, where), values, torch.full_like(values, empty))
    out = kept.new_full((n,), empty).scatter_reduce_(0, inverse, kept, "amax" if largest else "amin")[inverse]
    return torch.where(out.isinf(), torch.zeros_like(out), out)


def group_rank(values: Tensor, group: Tensor, ties: Tensor | None = None) -> Tensor:
    """(B,) long: 0 for the smallest value of the row's group; equal values by `ties`, then in row order."""
    order = torch.arange(len(values), device=values.device) if ties is None else torch.argsort(ties, stable=True)
    order = order[torch.argsort(values[order], stable=True)]
    order = order[torch.argsort(group[order], stable=True)]
    sorted_group = group[order]
    position = torch.arange(len(order), device=values.device)
    starts = torch.ones_like(position, dtype=torch.bool)
    starts[1:] = sorted_group[1:] != sorted_group[:-1]
    first = torch.where(starts, position, torch.zeros_like(position)).cummax(0).values
    rank = torch.empty_like(position)
    rank[order] = position - first
    return rank


def group_median(values: Tensor, group: Tensor, where: Tensor | None = None) -> Tensor:
    """(B,) lower median over the counted members of the row's group; NaN values do not count."""
    counted = _counted(values, where)
    rank = group_rank(torch.where(counted, values, torch.full_like(values, torch.inf)), group)
    middle = counted & (rank == (group_count(group, counted) - 1) // 2)
    return group_sum(torch.where(middle, values, torch.zeros_like(values)), group)


def degenerate(values: Tensor, group: Tensor, where: Tensor | None = None, tolerance: float = 1e-6) -> Tensor:
    """(B,) bool: all counted members of the row's group have the same value (a group of one included)."""
    spread = group_extreme(values, group, where) - group_extreme(values, group, where, largest=False)
    return spread < tolerance


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = 1) -> Tensor:
    """Mean of `(B, T)` over the mask along `dim` (None: over all); 0 where nothing is masked in."""
    weight = mask.to(values.dtype)
    if dim is None:
        return (values * weight).sum() / weight.sum().clamp(min=1)
    return (values * weight).sum(dim) / weight.sum(dim).clamp(min=1)


def group_centred(values: Tensor, group: Tensor, where: Tensor | None = None) -> Tensor:
    """(B,) value minus the mean of the row's group; 0 for rows that do not count."""
    counted = _counted(values, where)
    return torch.where(counted, values - group_mean(values, group, counted), torch.zeros_like(values))


def group_normalized(
    values: Tensor, group: Tensor, where: Tensor | None = None, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """(B,) centred value over (standard deviation + eps) of the row's group; 0 for a group of one."""
    return group_centred(values, group, where) / (group_std(values, group, where, ddof) + eps)


def representatives(group: Tensor) -> Tensor:
    """(P,) one row of each group, for statistics in which a prompt counts once however many members it has."""
    _, inverse = torch.unique(group, return_inverse=True)
    rows = torch.arange(len(group), device=group.device)
    first = torch.full((int(inverse.max()) + 1 if len(group) else 0,), len(group), device=group.device)
    return first.scatter_reduce_(0, inverse, rows, "amin")


def quantile_level(values: Tensor, group: Tensor, edges: Tensor, last_closed: bool = False) -> Tensor:
    """(B,) long: how many quantiles of the batch the row's value lies above; one value for each group.

    `edges (k,)` are probabilities, quantiles interpolate linearly and count every group once. A value equal to an
    edge belongs below it; `last_closed` puts one equal to the last edge above it. NaN values get level -1.
    """
    once = values[representatives(group)]
    known = once[~torch.isnan(once)]
    if len(known) == 0:
        return torch.full_like(group, -1)
    cuts = torch.quantile(known, edges.to(known))
    above = values[:, None] > cuts
    if last_closed:
        above[:, -1] |= values >= cuts[-1]
    level = above.sum(1)
    return torch.where(torch.isnan(values), torch.full_like(level, -1), level)
