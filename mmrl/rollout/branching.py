"""A group as a tree: rows that begin in other rows, on tokens or on denoising steps."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Address, Ask, Plan, Step, Strategy
from mmrl.stages import stage


@stage(
    "rollout",
    "branching",
    method="tempo",
    paper="the tree of SPO (2505.23564), TEMPO (2509.18314) and BranchGRPO (2509.06040)",
    formula="at each point every row that reaches it gets `width` - 1 siblings that share its actions up to there",
    confidence="ours",
)
class Branching(Strategy):
    """Split every row at fixed places: `group_size` roots become `group_size` x `width`^len(at) leaves.

    at     actions behind which rows split, rising: tokens of the response, or denoising steps. Early splits tell
           what the beginning is worth, late ones what the end is
    width  rows that leave a split, the one that was there included

    A row that ends before a split goes on alone. One round of acting for each split; what is shared is stored in every
    leaf, sampled once, and trained in each (`aggregation: {..., shared: once}` weighs it once).
    """

    origins = (OWN,)

    def __init__(self, *, at: tuple[int, ...] = (8, 16), width: int = 2) -> None:
        if not at or list(at) != sorted(set(at)) or at[0] < 1:
            raise ConfigError(f"rollout 'branching': `at` are rising places from 1 on, got {list(at)}")
        if width < 2:
            raise ConfigError(f"rollout 'branching': width={width} splits nothing; choose at least 2")
        self.at, self.width = tuple(at), width
        self._known: dict[int, int] = {}

    def group_members(self, group_size: int) -> int:
        """At the most: rows that end before a split go on alone."""
        return int(group_size * self.width ** len(self.at))

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """Siblings of every row at the next split of its group; groups that came later catch up."""
        if step.round == 1:
            self._known = {}
        while any(self._known.get(group, 0) < len(self.at) for group in set(batch.group.tolist())):
            if asks := self._next(batch):
                return Plan(asks)
        return None

    def _next(self, batch: Batch) -> list[Ask]:
        """One split further in each group that has one left; none where no row reaches it."""
        asks = []
        for group in sorted(set(batch.group.tolist())):
            done = self._known.get(group, 0)
            if done == len(self.at):
                continue
            self._known[group] = done + 1
            place = self.at[done]
            reach = (batch.group == group) & (batch.source == 0) & batch.mask[:, place:].any(1)
            for member in sorted(batch.member[reach].tolist()):
                asks.append(Ask(self.width - 1, group=group, start=Address(member, place)))
        return asks
