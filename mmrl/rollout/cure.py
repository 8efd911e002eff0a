"""New answers that begin in earlier ones, where the policy was least sure."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Address, Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


def critical(entropy: Tensor, mask: Tensor, top: int, draw: torch.Generator) -> int:
    """One of the `top` places of highest entropy of a row, drawn evenly; the first place never; 0 where there is none.

    entropy, mask  (T,)
    """
    places = mask.nonzero().squeeze(1)
    places = places[places > 0]
    if not len(places):
        return 0
    order = places[torch.argsort(entropy[places], descending=True, stable=True)][:top]
    return int(order[int(torch.randint(len(order), (1,), generator=draw))])


@stage(
    "rollout",
    "cure",
    paper="CURE: critical-token re-generation, 2025; code bytedance/CURE",
    formula="of each of n1 rows one of its k most uncertain places c, drawn evenly: `again` rows from o[:c]; one "
    "baseline for all n1 (1 + again)",
    confidence="partly",
    needs=("entropy",),
    modalities=LANGUAGE,
)
class Cure(Strategy):
    """Every row is written again from a critical token; `group_size` 4 and `again` 3 make groups of 16.

    again  new rows for each first one
    top    k: the places to choose among; fewer keep to the most uncertain ones

    A row of one token gets fresh rows instead. What a new row inherits is its context: credit `own_actions` takes it
    out of its loss. About 300 steps of this, then ordinary sampling. Source: bytedance/CURE, CURE_First_Stage. There
    special tokens and single characters are no places; here they are.
    """

    origins = (OWN,)

    def __init__(self, *, again: int = 3, top: int = 20) -> None:
        if again < 1 or top < 1:
            raise ConfigError(f"rollout 'cure': again={again}, top={top}; both are at least 1")
        self.again, self.top = again, top
        self._again: set[int] = set()

    def group_members(self, group_size: int) -> int:
        return group_size * (1 + self.again)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._again = set()
        asks = []
        for row in range(len(batch)):
            group, member = int(batch.group[row]), int(batch.member[row])
            if group in self._again or batch.source[row] > 0:
                continue
            draw = step.key.at(prompt=str(group), member=member, purpose="cure").generator()
            place = critical(batch["entropy"][row].cpu(), batch.mask[row].cpu(), self.top, draw)
            start = Address(member, place) if place else None
            asks.append(Ask(self.again, group=group, start=start))
        self._again |= {ask.group for ask in asks if ask.group is not None}
        return Plan(asks) if asks else None
