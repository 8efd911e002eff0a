"""Failed answers are kept up to their first wrong step and go on from there."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.hints import worth
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Address, Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


def first_flagged(flagged: Tensor, mask: Tensor) -> Tensor:
    """(B,) long: the first flagged action of a row, -1 for none."""
    wrong = (flagged > 0) & mask
    return torch.where(wrong.any(1), wrong.long().argmax(1), -1)


@stage(
    "rollout",
    "scope",
    paper="SCOPE: step-wise correction, 2026",
    formula="a failed row whose first flagged action j is behind `least` of it: a new row from its first j actions, in "
    "its place",
    confidence="reconstructed",
    needs=("flagged_tokens",),
    modalities=LANGUAGE,
)
class Scope(Strategy):
    """The right beginning of a failed answer is kept, and the policy writes the rest again.

    least  a row is repaired where at least this share of it stands before the first wrong action; smaller repairs more
    count  new rows for each

    Reads `flagged_tokens (B, T)`, which a reward makes (a judge of steps or of perception). Rows that are wrong and not
    flagged stay. What was kept trains in the new row with its advantage. Source: abstract; there a teacher writes the
    wrong step.
    """

    origins = (OWN,)

    def __init__(self, *, least: float = 0.3, count: int = 1) -> None:
        if not 0 <= least < 1 or count < 1:
            raise ConfigError(f"rollout 'scope': least={least}, count={count}; expected [0, 1), and at least 1")
        self.least, self.count = least, count
        self._repaired: dict[tuple[int, int], bool] = {}

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if "flagged_tokens" not in batch:
            raise ConfigError(
                "rollout 'scope' reads flagged_tokens (B, T), and no reward makes it; declare one by "
                "rewards=[{name: ..., columns: [flagged_tokens]}]"
            )
        if step.round == 1:
            self._repaired = {}
        place, value = first_flagged(batch["flagged_tokens"], batch.mask), worth(batch)
        asks = []
        for row in range(len(batch)):
            address = (int(batch.group[row]), int(batch.member[row]))
            at, length = int(place[row]), int(batch.length[row])
            begun = bool(((batch.owner[row] != batch.member[row]) & batch.mask[row]).any())
            if (
                begun
                or address in self._repaired
                or not value[row] <= 0
                or not max(self.least * length, 1) <= at < length
            ):
                continue
            self._repaired[address] = True
            asks.append(Ask(self.count, group=address[0], start=Address(address[1], at)))
        addresses = zip(batch.group.tolist(), batch.member.tolist(), strict=True)
        keep = torch.tensor([a not in self._repaired for a in addresses], device=batch.group.device)
        return Plan(asks, counted=keep, trained=keep)
