"""Recomposition after the advantages are known: which of a batch's rollouts an optimizer step should hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.robust import scored, successes
from mmrl.objective.credit.tokens import check_share, progress
from mmrl.objective.groups import group_count, group_rank
from mmrl.objective.numerics import row_advantage, row_uniform
from mmrl.randomness import Key
from mmrl.record import Batch, Selection
from mmrl.selection.groups import after_advantage
from mmrl.stages import LANGUAGE, stage


def widest(values: Tensor, count: int, ties: Tensor) -> Tensor:
    """(N,) bool: the `count` values with the largest variance, always some lowest and the rest highest.

    All values equal: those of the lowest `ties`. Equal variances: the more balanced split.
    """
    n = len(values)
    chosen = torch.zeros(n, dtype=torch.bool, device=values.device)
    if count >= n or not n:
        return ~chosen
    order = torch.argsort(ties)
    order = order[torch.argsort(values[order], stable=True)]
    if values.max() - values.min() < 1e-12:
        return chosen.index_fill(0, torch.argsort(ties)[:count], True)
    low = torch.arange(count + 1, device=values.device)
    total, square = [torch.cat([v.new_zeros(1), v.cumsum(0)]) for v in (values[order], values[order] ** 2)]
    top = n - (count - low)
    mean = (total[low] + total[n] - total[top]) / count
    variance = (square[low] + square[n] - square[top]) / count - mean**2
    best = (variance >= variance.max() - 1e-12).nonzero().squeeze(1)
    k = int(best[(best - count / 2).abs().argmin()])
    return chosen.index_fill(0, torch.cat([order[:k], order[n - (count - k) :]]), True)


def _row_ties(batch: Batch, purpose: str) -> Tensor:
    return row_uniform(batch, purpose)[:, 0] if batch.mask.shape[1] else torch.zeros(len(batch.mask))


@stage(
    "group",
    paper="D3S: Dynamic Dual-Level Down-Sampling, arXiv 2509.22115",
    formula="keep the N_s rollouts of each group, then the N of the batch, of the largest advantage variance",
    confidence="partly",
    method="d3s",
    scope="batch",
)
@after_advantage
def d3s(batch: Batch, *, first: float = 0.5, last: float = 1.0, group_share: float | None = 0.5) -> Selection:
    """The rollouts whose advantages differ most train, more of them as the run goes on. (B,)

    first, last  share of the batch that trains at the start and at the end, linear between
    group_share  share of each group kept first (at least two, and no less than the batch's share); None skips it

    Advantages come from all rollouts and are not normalised again. Pair it with credit `d3s_tokens`. Source:
    abstract and a third-party note with the equations; the shares are ours.
    """
    check_share("first", first)
    check_share("last", last)
    share = (1 - progress(batch)) * first + progress(batch) * last
    values, ties = row_advantage(batch), _row_ties(batch, "d3s")
    kept = batch.trained.bool().clone()
    total = int(kept.sum())
    if group_share is not None:
        for g in torch.unique(batch.group[kept]).tolist():
            rows = (kept & (batch.group == g)).nonzero().squeeze(1)
            count = max(2, math.ceil(max(group_share, share) * len(rows)))
            kept[rows] = widest(values[rows], count, ties[rows])
    rows = kept.nonzero().squeeze(1)
    kept[rows] = widest(values[rows], math.ceil(share * total), ties[rows])
    return Selection(trained=kept)


@stage(
    "group",
    paper="DanceGRPO: unleashing GRPO on visual generation, arXiv 2505.07818",
    formula="of each group the keep / 2 rows of the highest reward and the keep / 2 of the lowest train",
    confidence="partly",
    method="dance_grpo",
)
@after_advantage
def best_and_worst(batch: Batch, *, keep: int = 8) -> Selection:
    """The extremes of a group train, and all of it stays in the baseline: DanceGRPO's bestofn, 8 of 24. (B,)

    keep  rows of each group, an even number; equal rewards go by member. A smaller group trains whole

    The code of its video script was not read here; the rule and its numbers are second-hand.
    """
    if keep < 2 or keep % 2:
        raise ConfigError(f"best_and_worst: keep={keep}; expected an even number, at least 2")
    where = scored(batch) & batch.trained
    reward = torch.where(where, batch.reward, torch.inf)
    low = group_rank(reward, batch.group, ties=batch.member)
    high = group_rank(torch.where(where, -batch.reward, torch.inf), batch.group, ties=-batch.member)
    return Selection(trained=where & ((low < keep // 2) | (high < keep // 2)))


@stage(
    "group",
    paper="RoRecomp: Rollout Response Recomposition, arXiv 2509.25958",
    formula="priority step: the shortest share of the right and the longest share of the wrong; the rest in a "
    "compensation step with probability p, annealed to 0",
    confidence="partly",
    needs=("success",),
    modalities=LANGUAGE,
)
@after_advantage
def rorecomp(batch: Batch, *, share: float = 0.5, compensation: float = 0.5) -> Selection:
    """Short right and long wrong answers train first; the others in a further optimizer step, ever more rarely. (B,)

    share         of the right (shortest) and of the wrong answers (longest) of each group, counted up
    compensation  probability of the further step at the start of the run, falling linearly to 0 at its end

    Groups that are all right or all wrong have no advantage and stay out. Source: abstract and reviews; share
    and probability are ours. The paper's buffer of left-over answers spans steps; here they belong to their own
    rollout batch, so they are never staler than it.
    """
    check_share("share", share)
    where = scored(batch) & batch.trained & (batch.advantage != 0).any(1)
    right = successes(batch, "rorecomp")
    priority = torch.zeros_like(where)
    for side, length in ((where & right, batch.length), (where & ~right, -batch.length)):
        ranked = torch.where(side, length, torch.iinfo(torch.long).max)
        rank = group_rank(ranked, batch.group, ties=batch.member)
        priority |= side & (rank < torch.ceil(share * group_count(batch.group, side) - 1e-9))
    drawn = Key(batch.seed, batch.step, purpose="rorecomp").uniform(1).item()
    again = drawn < compensation * (1 - progress(batch))
    update = torch.where(priority, batch.update, batch.update + batch.update.max() + 1)
    return Selection(trained=where if again else priority, update=update)


@stage(
    "group",
    paper="TGRL: trajectory-guided RL, arXiv 2603.26126",
    formula="drop an expert trace that is wrong, too unlikely (mean lp < -tau), or of a prompt already solved",
    confidence="reconstructed",
    method="tgrl",
    needs=("expert", "success"),
    modalities=LANGUAGE,
)
def expert_filter(batch: Batch, *, tau: float = 4.0, solved: float = 0.75) -> Selection:
    """Expert traces stay in the group only where they can teach. (B,)

    tau     an expert trace whose mean log-prob is below -tau is too far from the policy
    solved  a prompt whose own rollouts reach this success rate needs no expert

    Reads `expert (B,)`. Reconstructed from the abstract.
    """
    expert = batch["expert"].bool()
    right = successes(batch, "tgrl")
    own = scored(batch) & ~expert
    rate = group_count(batch.group, own & right) / group_count(batch.group, own).clamp(min=1)
    likelihood = batch.old_log_probs.sum(1) / batch.length.clamp(min=1)
    drop = expert & (~right | (likelihood < -tau) | (rate >= solved))
    return Selection(counted=batch.counted & ~drop, trained=batch.trained & ~drop)
