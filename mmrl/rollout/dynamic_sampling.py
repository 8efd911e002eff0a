"""New prompts in place of groups that teach nothing."""

from __future__ import annotations

import torch

from mmrl.objective.groups import group_count
from mmrl.record import Batch
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import stage


@stage(
    "rollout",
    "dynamic_sampling",
    method="dapo",
    paper="DAPO, arXiv 2503.14476",
    formula="while fewer groups count than the step wants, ask for as many new prompts as were dropped",
    confidence="partly",
)
class DynamicSampling(Strategy):
    """Fill a step up with fresh prompts until enough groups count.

    rounds  how often a step may ask again; more cost time where few prompts teach, fewer leave a smaller batch

    What is dropped is decided by the recipe's `objective.group`, such as the selection of the same name. Groups that
    no selection dropped, because their reward failed, are not replaced. Source: arXiv 2503.14476, section 3.2 and
    algorithm 1; there the rounds have no end, as in verl's `max_num_gen_batches` 0.
    """

    origins = (OWN,)

    def __init__(self, *, rounds: int = 4) -> None:
        self.rounds = rounds

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round > self.rounds:
            return None
        alive, kept = _groups(batch, batch.counted), _groups(batch, step.select(batch).counted)
        missing = min(len(alive - kept), step.prompts_per_step - len(kept))
        return Plan([Ask(step.group_size, index=i) for i in step.draw(missing)]) if missing > 0 else None


def _groups(batch: Batch, rows: torch.Tensor) -> set[int]:
    return set(batch.group[group_count(batch.group, rows) > 0].tolist())
