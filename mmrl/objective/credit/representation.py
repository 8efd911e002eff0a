"""Credit from hidden states: which tokens pull right and wrong rollouts the same way.

The mathematics here works on the states of one group or batch, which never enter the record: a policy that
offers the named probe computes them inside its forward passes and returns one number for each token
(`mmrl.policies.language.probes`: `group_probes`, and `batch_probes` for DelTA, whose centroids span the batch of
all ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mmrl.columns import columns
from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.groups import group_extreme, group_mean, masked_mean
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, Need, stage


def token_hidden_reward(errors: Tensor, hidden: Tensor, right: Tensor) -> Tensor:
    """(N,) s_t = g_t^T M h_t, M = the sum of g h^T over tokens of right rollouts: pull on the right answers.

    errors  (N, V*) onehot(y) - p_old on the token ids seen in the group, not renormalised
    hidden  (N, d) states before the output head
    right   (N,) bool: the token belongs to a right rollout
    """
    moment = errors[right].T @ hidden[right]
    return ((errors @ moment) * hidden).sum(1)


@stage(
    "credit",
    paper="Token Hidden Reward, arXiv 2510.03669; NTHR, arXiv 2505.18830",
    formula="thr: A (1 + sign(THR) p) 1[|THR| > tau], THR = sign(A) s_t; nthr: A 2|.5 - share right| on wrong tokens "
    "with s_t > tau; tau = beta min over right rollouts of mean_t s",
    confidence="partly",
    needs=lambda **_: {"token_hidden_reward": Need("token_hidden_reward"), **columns("success")},
    modalities=LANGUAGE,
)
def thr(
    advantage: Tensor,
    batch: Batch,
    *,
    mode: str = "thr",
    steer: float = 0.1,
    beta: float = 1.0,
    mask_small: bool = True,
) -> tuple[Tensor, Tensor]:
    """Tokens weighted by their pull on the likelihood of the right answers. (B, T)

    mode        thr, or nthr: only wrong tokens that pull right answers down are softened
    steer       thr: above 0 exploits, below 0 explores, 0 only masks
    beta        scale of the threshold
    mask_small  thr: tokens below the threshold are silenced; False keeps them at weight 1

    Groups without a right or without a wrong rollout keep their advantage. The column is `token_hidden_reward`
    of each group. Source: NTHR from a public implementation note with its formulas; THR's mask and sign from the
    abstract, a summary and reviews, its values ours.
    """
    if mode not in ("thr", "nthr"):
        raise ConfigError(f"thr: {unknown('mode', mode, ('thr', 'nthr'))}")
    pull, where = batch["token_hidden_reward"], scored(batch)
    right = successes(batch, "thr") & where
    anchor = group_extreme(masked_mean(pull, batch.mask), batch.group, right, largest=False)
    tau = beta * anchor[:, None]
    share = group_mean(right.to(pull.dtype), batch.group, where)[:, None]
    mixed = ((share > 0) & (share < 1)).expand_as(pull)
    if mode == "nthr":
        soften = mixed & ~right[:, None] & (pull > tau)
        weight = torch.where(soften, 2 * (0.5 - share).abs(), torch.ones_like(pull))
    else:
        influence = advantage.sign() * pull
        weight = 1 + influence.sign() * steer
        small = influence.abs() <= tau
        weight = torch.where(small, torch.zeros_like(weight) if mask_small else torch.ones_like(weight), weight)
        weight = torch.where(mixed, weight, torch.ones_like(weight))
    return advantage * weight.to(advantage.dtype), batch.loss_mask


Pieces = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Another pass over the tokens: (their places (n,), their vectors (n, d)), some at a time."""
Total = Callable[[Tensor], Tensor]
"""Adds a tensor up over ranks."""


def discriminative_weights(
    pieces: Pieces,
    advantage: Tensor,
    *,
    low: float = 0.8,
    high: float = 1.2,
    rounds: int = 1,
    total: Total = lambda values: values,
) -> Tensor:
    """(N,) mean 1: tokens typical of one side of the advantage weigh more, tokens both sides share less.

    pieces     vectors (1 - p_old(y)) h, h before the output head; 2 (rounds + 1) passes
    advantage  (N,) of each token
    rounds     refinements of the two centroids
    """
    sides = advantage > 0, advantage < 0
    if not total(torch.stack([side.sum() for side in sides])).all():
        return torch.ones_like(advantage)
    margin = _margin(pieces, advantage, advantage.abs(), total)
    scale = _spread(margin, sides, total)
    for left in reversed(range(rounds)):
        gate = torch.sigmoid(margin / scale)
        margin = _margin(pieces, advantage, advantage.abs() * gate, total)
        scale = _spread(margin, sides, total) if left else scale
    weight = torch.where(sides[0] | sides[1], low + (high - low) * torch.sigmoid(margin / scale), low)
    count, added = total(torch.stack([torch.ones_like(weight).sum(), weight.sum()]))
    return weight * count / added


def _margin(pieces: Pieces, advantage: Tensor, weight: Tensor, total: Total) -> Tensor:
    """(N,) squared distance to the other side's weighted centroid minus that to the own side's."""
    sums: Tensor | None = None
    for place, vectors in pieces():
        shares = torch.stack([weight[place] * (advantage[place] > 0), weight[place] * (advantage[place] < 0)])
        part = shares.to(vectors) @ torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)
        sums = part if sums is None else sums + part
    assert sums is not None
    sums = total(sums)
    right, wrong = sums[:, :-1] / sums[:, -1:].clamp(min=1e-12)
    margin = torch.zeros_like(advantage)
    for place, vectors in pieces():
        # |v - wrong|^2 - |v - right|^2, in which |v|^2 cancels
        apart = 2 * vectors @ (right - wrong) + (wrong**2).sum() - (right**2).sum()
        margin[place] = advantage[place].sign() * apart.to(margin)
    return margin


def _spread(margin: Tensor, sides: tuple[Tensor, Tensor], total: Total) -> Tensor:
    """(N,) population standard deviation of the margins of the token's side, at least 1e-4."""
    scale = torch.ones_like(margin)
    for side in sides:
        values = margin[side]
        count, added = total(torch.stack([torch.ones_like(values).sum(), values.sum()]))
        variance = total(((values - added / count) ** 2).sum()) / count
        scale[side] = variance.sqrt().clamp(min=1e-4)
    return scale


@stage(
    "credit",
    paper="DelTA: Discriminative Token Credit Assignment, arXiv 2605.21467",
    formula="A_it w_t; w = lo + (hi - lo) sigmoid(margin/std), margin = |v - mu_other|^2 - |v - mu_own|^2, mean 1; "
    "v = (1 - p) h",
    confidence="verified",
    needs=lambda *, low=0.8, high=1.2, rounds=1, **_: {
        "discriminative_weight": Need(
            "discriminative_weight", options=(("low", low), ("high", high), ("rounds", rounds))
        )
    },
    scope="batch",
    modalities=LANGUAGE,
)
def delta(
    advantage: Tensor, batch: Batch, *, low: float = 0.8, high: float = 1.2, rounds: int = 1
) -> tuple[Tensor, Tensor]:
    """Tokens whose gradient is typical of right or of wrong rollouts weigh more, shared ones less. (B, T)

    low, high  the weights' range before they are brought to mean 1
    rounds     refinements of the two centroids

    The column is `discriminative_weights` of the whole batch. Source: the authors' code (RUCBM/DelTA). Ours: a
    batch with one side only weighs 1.
    """
    return advantage * batch["discriminative_weight"].to(advantage.dtype), batch.loss_mask


def residual_weights(
    positive: Tensor, negative: Tensor, *, rank: int = 64, low: float = 0.1, quantiles: tuple[float, float] = (0.2, 0.8)
) -> Tensor:
    """(M,) in [low, 1]: how far each token of a wrong rollout lies outside the subspace of the right ones.

    positive (n, d), negative (M, d) hidden states, layer-normalised here without affine part. Fewer than four
    positive tokens: weight 1. Where all residuals are equal: (low + 1) / 2.
    """
    k = min(rank, len(positive) - 1, positive.shape[1])
    if len(positive) < 4 or k < 1 or not len(negative):
        return negative.new_ones(len(negative))
    width = positive.shape[1:]
    positive = torch.nn.functional.layer_norm(positive, width)
    mean = positive.mean(0)
    basis = torch.linalg.svd(positive - mean, full_matrices=False).Vh[:k]
    u = torch.nn.functional.layer_norm(negative, width) - mean
    residual = ((u - u @ basis.T @ basis) ** 2).mean(1)
    bottom, top = torch.quantile(residual, torch.tensor(quantiles).to(residual))
    if top - bottom < 1e-7:
        return torch.full_like(residual, (low + 1) / 2)
    return low + (1 - low) * ((residual - bottom) / (top - bottom)).clamp(0, 1)


@stage(
    "credit",
    paper="ResRL: negative sample projection residual, 2026",
    formula="right: .1 A; wrong: A w_t, w from the squared residual of LN(h) off the top-64 subspace of right tokens",
    confidence="verified",
    needs=lambda *, rank=64, low=0.1, **_: {
        "residual_weight": Need("residual_weight", options=(("low", low), ("rank", rank)))
    },
    modalities=LANGUAGE,
)
def resrl(
    advantage: Tensor, batch: Batch, *, positive: float = 0.1, rank: int = 64, low: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Wrong tokens are pushed down as far as their representation leaves the subspace of the right ones. (B, T)

    positive  factor on right rollouts
    rank      of the subspace
    low       weight of a wrong token inside the subspace

    The column is `residual_weights` of each group (penultimate layer), 1 where a group lacks either side.
    Source: the authors' code (1229095296/ResRL).
    """
    weight = torch.where(advantage > 0, torch.full_like(advantage, positive), batch["residual_weight"].to(advantage))
    return advantage * weight, batch.loss_mask
