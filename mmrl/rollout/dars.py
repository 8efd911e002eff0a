"""More rollouts for hard prompts, until their advantages weigh what those of a half-solved prompt do."""

from __future__ import annotations

import math
from typing import Literal

from mmrl.errors import ConfigError
from mmrl.objective.groups import group_mean
from mmrl.record import Batch
from mmrl.rollout.hints import worth
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import stage


def extra(rate: float, first: int, most: int, weight: str = "equal", std: bool = False) -> int:
    """Further rollouts of a prompt of which `rate` of `first` were right, so that it has at most `most`.

    weight  "equal": the sum of |A| comes to that of a prompt of rate 1/2; "hardness": to 2 (1 - rate) times that
    std     the advantage is divided by the group's deviation
    """
    if rate >= 0.5:
        return 0
    p = max(rate, 0.5 / first)
    mean = 2 * math.sqrt(p * (1 - p)) if std else 2 * p * (1 - p)
    peak = first * (1.0 if std else 0.5)
    target = peak * (2 * (1 - p) if weight == "hardness" else 1)
    return min(max(math.ceil((target - first * mean) / mean - 1e-9), 0), most - first)


@stage(
    "rollout",
    "dars",
    paper="DARS: difficulty-adaptive rollout sampling, 2025; code yangzhch6/DARS",
    formula="dN = ceil((peak - N S)/S), S(p) = 2p(1-p) or 2 sqrt(p(1-p)), peak = N S(1/2), times 2(1-p) by hardness; "
    "0 for p >= 1/2",
    confidence="partly",
)
class Dars(Strategy):
    """A second round for prompts that fewer than half of the rollouts solved.

    most    rollouts a prompt may have in all; 32 for "equal" and 64 for "hardness" in the release
    weight  "equal" gives every prompt the same sum of |A|, "hardness" more to harder ones
    std     whether the recipe's advantage divides by the group's deviation

    A prompt nobody solved counts as p = 1/(2 N). Advantages are taken once, over all of its rollouts. Source:
    yangzhch6/DARS, ray_dars_trainer.py.
    """

    origins = (OWN,)

    def __init__(self, *, most: int = 32, weight: Literal["equal", "hardness"] = "equal", std: bool = False) -> None:
        if weight not in ("equal", "hardness"):
            raise ConfigError(f"rollout 'dars': weight={weight!r}; expected 'equal' or 'hardness'")
        self.most, self.weight, self.std = most, weight, std
        self._seen: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if self.most < step.group_size:
            raise ConfigError(
                f"rollout 'dars': most={self.most} is less than training.group_size={step.group_size}, which every "
                "prompt starts with; raise it"
            )
        if step.round == 1:
            self._seen = set()
        value = worth(batch)
        scored = batch.counted & ~value.isnan()
        rate = group_mean((value > 0.5).to(value), batch.group, scored)
        asks = []
        for group in sorted(set(batch.group[scored].tolist()) - self._seen):
            rows = scored & (batch.group == group)
            more = extra(float(rate[rows][0]), step.group_size, self.most, self.weight, self.std)
            if more > 0:
                asks.append(Ask(more, group=group))
        self._seen |= set(batch.group.tolist())
        return Plan(asks) if asks else None
