"""More rollouts where they tell most: XRPO's allocator."""

from __future__ import annotations

import math
from functools import cache

import torch

from mmrl.objective.groups import group_count, group_std, representatives
from mmrl.record import Batch
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import stage


@cache
def _quantile(freedom: int, level: float) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, freedom))


def half_width(std: float, count: int, level: float = 0.05) -> float:
    """Of the confidence interval of a group's mean reward: t_{1 - level/2, n - 1} std / sqrt(n), n at least 2."""
    return _quantile(count - 1, level) * std / math.sqrt(count)


def allocate(counts: list[int], stds: list[float], extra: int, level: float = 0.05, explore: float = 1.0) -> list[int]:
    """How many of `extra` rollouts each prompt gets: one at a time, where it narrows most or where few were made."""
    made, total = [max(n, 2) for n in counts], sum(counts)
    given = [0] * len(counts)

    def narrower(i: int) -> float:
        return half_width(stds[i], made[i], level) - half_width(stds[i], made[i] + 1, level)

    gains = [narrower(i) for i in range(len(counts))]
    for _ in range(extra if counts else 0):
        bonus = explore * math.sqrt(math.log1p(total))
        best = max(range(len(counts)), key=lambda i: gains[i] + bonus / math.sqrt(made[i]))
        given[best], made[best], total = given[best] + 1, made[best] + 1, total + 1
        gains[best] = narrower(best)
    return given


@stage(
    "rollout",
    "xrpo_allocator",
    method="xrpo",
    paper="XRPO, arXiv 2510.06672",
    formula="the next rollout to argmax h(n) - h(n+1) + lambda sqrt(log(1+T)/n), h(n) = t_{1-a/2,n-1} std / sqrt(n)",
    confidence="partly",
)
class Allocator(Strategy):
    """More rollouts for prompts whose mean reward is least known; groups become unequal.

    average  rollouts of a prompt in the mean, once all are given: `group_size` is what each starts with
    level    of the confidence interval
    explore  lambda: keeps prompts alive whose rollouts all scored the same

    Asks once for all that are missing. Source: abstract and a third-party implementation; level and lambda are ours.
    In-context seeding of unsolved prompts is left out.
    """

    def __init__(self, *, average: int = 16, level: float = 0.05, explore: float = 1.0) -> None:
        self.average, self.level, self.explore = average, level, explore

    def join(self, batch: Batch, step: Step) -> Plan | None:
        scored = batch.counted & ~torch.isnan(batch.reward)
        rows = representatives(batch.group)
        counts = group_count(batch.group)[rows].tolist()
        missing = self.average * len(rows) - len(batch)
        stds = group_std(batch.reward, batch.group, scored)[rows].tolist()
        given = allocate(counts, stds, max(missing, 0), self.level, self.explore)
        asks = [Ask(n, group=g) for g, n in zip(batch.group[rows].tolist(), given, strict=True) if n]
        return Plan(asks) if asks else None
