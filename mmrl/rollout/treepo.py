"""A group as a tree of fixed-length segments, of a given number of leaves."""

from __future__ import annotations

import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Address, Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


def spread(budget: int, rows: int, most: int) -> list[int]:
    """`budget` siblings over `rows` rows as evenly as they go, at most `most` each, the first rows first."""
    return [min(budget // rows + (i < budget % rows), most) for i in range(rows)] if rows else []


@stage(
    "rollout",
    "treepo",
    paper="TreePO, arXiv 2508.17445",
    formula="roots drawn in 2..first; behind each segment min(W - leaves, (d - 1) rows that reach it) siblings, spread "
    "evenly; then from random segments of finished rows until there are W leaves",
    confidence="partly",
    modalities=LANGUAGE,
)
class TreePO(Strategy):
    """Split behind every segment until the width is spent; what stays is begun inside finished rows.

    segment  tokens of a segment; shorter ones branch earlier and more often
    split    d: rows that leave a split, the one that was there included
    first    a group begins with 2 to so many rows, drawn evenly

    `training.group_size` is the width W: exactly so many leaves. Pair it with advantage `treepo` of the same `segment`.
    Source: multimodal-art-projection/TreePO, vllm_rollout_tree.py; there segments are written one by one and the budget
    of rows that ended early goes to the next split, here every row is written to its end first.
    """

    origins = (OWN,)

    def __init__(self, *, segment: int = 512, split: int = 2, first: int = 8) -> None:
        if segment < 1 or split < 2 or first < 2:
            raise ConfigError(
                f"rollout 'treepo': segment={segment}, split={split}, first={first}; expected at least 1, 2 and 2"
            )
        self.segment, self.split, self.first = segment, split, first
        self._depth: dict[int, int] = {}

    def ask(self, step: Step) -> Plan | None:
        self._depth = {}
        most = min(self.first, step.group_size)
        asks = []
        for place, index in enumerate(step.draw(step.prompts_per_step)):
            draw = step.key.at(member=place, purpose="treepo roots").generator()
            asks.append(Ask(int(torch.randint(2, most + 1, (1,), generator=draw)), index=index))
        return Plan(asks)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        asks: list[Ask] = []
        for group in sorted(set(batch.group.tolist())):
            rows = ((batch.group == group) & (batch.source == 0)).nonzero().squeeze(1)
            budget = step.group_size - len(rows)
            if budget > 0:
                tree = batch.index(rows)
                asks += self._grow(tree, group, budget) or self._fall_back(tree, group, budget, step)
        return Plan(asks) if asks else None

    def _grow(self, rows: Batch, group: int, budget: int) -> list[Ask]:
        """Siblings behind the next segment that some row reaches; none where no row is that long."""
        self._depth[group] = self._depth.get(group, 0) + 1
        place = self._depth[group] * self.segment
        alive = sorted(rows.member[rows.length > place].tolist())
        more = spread(min(budget, (self.split - 1) * len(alive)), len(alive), self.split - 1)
        pairs = zip(more, alive, strict=True)
        return [Ask(n, group=group, start=Address(member, place)) for n, member in pairs if n]

    def _fall_back(self, rows: Batch, group: int, budget: int, step: Step) -> list[Ask]:
        """New ends of finished rows from random segments of theirs; fresh roots where none has two segments."""
        asks = []
        for extra in range(budget):
            draw = step.key.at(prompt=str(group), member=len(rows) + extra, purpose="treepo fall back").generator()
            row = int(torch.randint(len(rows), (1,), generator=draw))
            inner = (int(rows.length[row]) - 1) // self.segment
            place = self.segment * int(torch.randint(inner + 1, (1,), generator=draw))
            asks.append(Ask(1, group=group, start=Address(int(rows.member[row]), place) if place else None))
        return asks
