"""Search over prefixes: where the beginning of an output says what the whole will be, the best beginnings go on."""

from __future__ import annotations

import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Address, Ask, Plan, Step, Strategy
from mmrl.stages import stage


@stage(
    "rollout",
    "ordered_search",
    paper="(1D) Ordered Tokens Enable Efficient Test-Time Search, arXiv 2604.15453",
    formula="behind each segment the `width` prefixes of the highest reward get `expand` ends each, the one they have "
    "among them",
    confidence="reconstructed",
)
class OrderedSearch(Strategy):
    """Beam search whose prefixes are judged by finished outputs, the paper's lookahead search.

    segment  actions by which prefixes grow from round to round: tokens, or denoising steps
    width    prefixes that go on
    expand   ends of each, the one that brought it there included; with 1 nothing is searched
    rounds   how often the prefixes grow

    `training.group_size` rows are the first round, width x expand in the paper's terms. Each further round costs the
    verifier width x (expand - 1) outputs. Published for picture tokens from coarse to fine, whose prefixes a decoder
    of nested dropout draws; for those, and for denoising steps, a prefix says much, for words in a row less. The row
    of the highest reward is in the group, so what trains on the best of it needs nothing more. All rows keep the
    log-probs they were drawn with, but a prefix that is good goes on more often than the policy would have drawn it,
    and no ratio makes up for that: `aggregation: {..., shared: once}` at least weighs a prefix once. The scores of
    unfinished prefixes, beam search proper, would need a decoder of prefixes, and none ships.
    """

    origins = (OWN,)

    def __init__(self, *, segment: int = 16, width: int = 2, expand: int = 4, rounds: int = 2) -> None:
        low = min(segment, width, expand, rounds)
        if low < 1:
            raise ConfigError(
                f"rollout 'ordered_search': segment={segment}, width={width}, expand={expand}, rounds={rounds}; "
                "expected at least 1 each"
            )
        self.segment, self.width, self.expand, self.rounds = segment, width, expand, rounds
        self._known: dict[int, int] = {}

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """The next ends of the best prefixes; None where every group has had its rounds, or nothing is that long."""
        if step.round == 1:
            self._known = {}
        asks = []
        for group in sorted(set(batch.group.tolist())) if self.expand > 1 else ():
            asks += self._further(batch, group)
        return Plan(asks) if asks else None

    def _further(self, batch: Batch, group: int) -> list[Ask]:
        done = self._known.get(group, 0)
        self._known[group] = done + 1
        place = (done + 1) * self.segment
        if done >= self.rounds:
            return []
        assert batch.reward is not None
        scored = (batch.group == group) & (batch.source == 0) & ~torch.isnan(batch.reward)
        rows = (scored & batch.mask[:, place:].any(1)).nonzero().squeeze(1).tolist()
        rows.sort(key=lambda row: (-float(batch.reward[row]), int(batch.member[row])))
        best: dict[int, int] = {}
        for row in rows:
            prefix = int(batch.member[row] if batch.owner is None else batch.owner[row, place - 1])
            best.setdefault(prefix, row)
        return [
            Ask(self.expand - 1, group=group, start=Address(int(batch.member[row]), place))
            for row in list(best.values())[: self.width]
        ]
