"""Risk-averse advantages over bundles of prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.advantages.robust import scored
from mmrl.objective.groups import group_centred, group_count, group_extreme, group_rank, group_std, group_sum
from mmrl.record import Batch
from mmrl.stages import stage

GRID = tuple(round(0.05 * i, 2) for i in range(1, 20))


def mixed_value_at_risk(
    scores: Tensor, low: Tensor, high: Tensor, a: float, b: float, weight: float, natural_baseline: bool = True
) -> Tensor:
    """(N,) (w CVaR + RVaR) / (w + 1) of scores, given the quantiles `low` at level a and `high` at level b."""
    eps = 1e-6
    between = (scores - low).clamp(min=0) - (scores - high).clamp(min=0)
    if natural_baseline:
        between = between + low - high
    tail = -(low - scores).clamp(min=0) / (a + eps)
    return (weight * tail + between / (b - a + eps)) / (weight + 1)


@stage(
    "advantage",
    paper="RiskPO: mixed value-at-risk policy optimization, 2025",
    formula="(w CVaR_a + RVaR_ab)/(w + 1) of the summed reward of a bundle's k-th rollouts, over their std",
    confidence="verified",
    scope="batch",
)
class riskpo:
    """A risk measure of bundles of prompts: strong pull on the low tail, none above the upper quantile. (B,)

    a, b              levels of the two quantiles; below a pulls hardest, above b not at all
    weight            of the tail below a
    bundle            prompts summed into one score; larger makes binary rewards finer
    quantiles         track (running quantiles across steps), batch (the bundle's own: what the release does in
                      effect), mix (their mean)
    quantile_rate     of the running quantiles
    natural_baseline  True makes every advantage 0 or less: pure negative reinforcement, 0 above b
    credit            std (over the deviation of the prompt's group), uniform, or sum_mean (by r - mean, the release's
                      second script)
    bundle_std        divide by the deviation of the bundle's scores

    The k-th rollouts of a bundle's prompts make "paper" k; rollouts past the smallest group of a bundle get 0.
    Source: the authors' code (RTkenny/RiskPO). Its tracked quantiles are written after the advantages and lost
    with the batch; here they act. Ours: when prompts do not divide evenly bundles differ by one prompt, and
    scores are brought to the size `bundle`.
    """

    def __init__(
        self, *, a: float = 0.2, b: float = 0.9, weight: float = 1.5, bundle: int = 5, quantiles: str = "track",
        quantile_rate: float = 0.1, natural_baseline: bool = True, credit: str = "std", bundle_std: bool = True,
    ):  # fmt: skip
        for name, value, known in (
            ("quantiles", quantiles, ("track", "batch", "mix")),
            ("credit", credit, ("std", "uniform", "sum_mean")),
        ):
            if value not in known:
                raise ConfigError(f"riskpo: {unknown(name, value, known)}")
        if not 0 < a < b < 1:
            raise ConfigError(f"riskpo: levels a={a} and b={b}: expected 0 < a < b < 1")
        self.a, self.b, self.weight, self.bundle, self.rate = a, b, weight, bundle, quantile_rate
        self.quantiles, self.natural_baseline, self.credit, self.bundle_std = (
            quantiles, natural_baseline, credit, bundle_std,
        )  # fmt: skip
        self.tracked: dict[str, float] = {}

    def __call__(self, batch: Batch) -> Tensor:
        where = scored(batch)
        bundle, paper = self._papers(batch, where)
        used = paper >= 0
        size = group_count(paper, used).clamp(min=1)
        # in double precision, in which equal papers are equal whatever the order of their rows
        scores = group_sum(batch.reward.double(), paper, used) * self.bundle / size
        first = used & (group_rank(batch.group, paper) == 0)
        low, high = self._levels(scores, bundle, first)
        value = mixed_value_at_risk(scores, low, high, self.a, self.b, self.weight, self.natural_baseline)
        if self.bundle_std:
            spread = group_std(scores, bundle, first)
            value = value / torch.where(group_count(bundle, first) > 1, spread + 1e-6, torch.ones_like(spread))
        self._track(scores[first])
        return self._to_rollouts(value, batch, paper, used).masked_fill(~used, 0.0).to(batch.reward)

    def _papers(self, batch: Batch, where: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) bundle of each row, and its paper: unique over the batch, -1 for rows that are in none."""
        ids, place = torch.unique(batch.group, return_inverse=True)
        bundles = max(1, len(ids) // self.bundle)
        bundle = place * bundles // len(ids)
        late = torch.where(where, batch.member, torch.iinfo(torch.long).max)
        rank = group_rank(late, batch.group)
        count = group_count(batch.group, where).double()
        shortest = group_extreme(count, bundle, count > 0, largest=False)
        paper = bundle * len(rank) + rank
        return bundle, torch.where(where & (rank < shortest), paper, -torch.ones_like(paper))

    def _levels(self, scores: Tensor, bundle: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) lower and upper quantile that judge each row's bundle."""
        own = torch.zeros(2, len(scores), dtype=scores.dtype, device=scores.device)
        levels = torch.tensor([self.a, self.b], dtype=scores.dtype, device=scores.device)
        for b in torch.unique(bundle[first]).tolist():
            own[:, bundle == b] = torch.quantile(scores[first & (bundle == b)], levels)[:, None]
        if self.quantiles == "batch" or not self.tracked:
            return own[0], own[1]
        running = torch.tensor([[self._nearest(self.a)], [self._nearest(self.b)]], dtype=scores.dtype).to(own)
        running = running.expand_as(own)
        low, high = (running + own) / 2 if self.quantiles == "mix" else running
        return low, high

    def _nearest(self, level: float) -> float:
        return self.tracked[str(min(GRID, key=lambda g: abs(g - level)))]

    def _track(self, scores: Tensor) -> None:
        """First batch: its empirical quantiles. Later: q += rate * (level - share of scores below q)."""
        if not len(scores):
            return
        for level in GRID:
            if (known := self.tracked.get(str(level))) is None:
                self.tracked[str(level)] = torch.quantile(scores, level).item()
            else:
                below = (scores < known).to(scores.dtype).mean().item()
                self.tracked[str(level)] = known + self.rate * (level - below)

    def _to_rollouts(self, value: Tensor, batch: Batch, paper: Tensor, used: Tensor) -> Tensor:
        if self.credit == "uniform":
            return value
        if self.credit == "std":
            spread = group_std(batch.reward, batch.group, used)
            return value / (torch.where(spread < 1e-3, torch.ones_like(spread), spread) + 1e-6)
        centred = group_centred(batch.reward, batch.group, used)
        total = group_sum(centred, paper, used)
        share = centred / torch.where(total.abs() < 1e-6, torch.ones_like(total), total)
        even = 1 / group_count(paper, used).clamp(min=1)
        return value * torch.where(total.abs() < 1e-6, even, share)

    def state_dict(self) -> dict[str, Any]:
        return {"tracked": dict(self.tracked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tracked = dict(state["tracked"])
