"""Few answers of many prompts, then many answers of few: the budget of DRIVE's two stages."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import stage


@stage(
    "rollout",
    "drive_budget",
    method="drive",
    paper="DRIVE: data curation for RLVR, 2025",
    formula="G answers a prompt before step `hard_from`, `members` from it on",
    confidence="reconstructed",
)
class DriveBudget(Strategy):
    """A larger group in the hard stage, of as many prompts or of so few that a step costs what it did.

    hard_from  step at which the hard stage begins, as prompts `drive` has it
    members    answers a prompt has in the hard stage; before it `training.group_size`
    same_cost  fewer prompts a step then, so that the number of answers stays; false: as many as before

    Source: abstract (8, then 64 answers); `same_cost` is ours.
    """

    origins = (OWN,)

    def __init__(self, *, hard_from: int = 100, members: int = 64, same_cost: bool = False) -> None:
        if members < 2:
            raise ConfigError(f"rollout 'drive_budget': members={members}; choose at least 2")
        self.hard_from, self.members, self.same_cost = hard_from, members, same_cost

    def ask(self, step: Step) -> Plan | None:
        if step.number < self.hard_from:
            return None
        prompts = step.prompts_per_step
        if self.same_cost:
            prompts = max(1, prompts * step.group_size // self.members)
        return Plan([Ask(self.members, index=i) for i in step.draw(prompts)])
