"""More answers vote than train."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.origins import OWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "votes",
    method="ttrv",
    paper="TTRL: test-time RL, arXiv 2504.16084, whose trainer TTRV, arXiv 2510.06783, is built on",
    formula="`count` answers a prompt, over which shaping `ttrv` counts; the first training.group_size of them train",
    confidence="partly",
    modalities=LANGUAGE,
)
class Votes(Strategy):
    """A prompt is answered `count` times, and the first `training.group_size` answers are its group.

    count  answers a prompt; the more, the surer is what they agree on

    Rewards of answers that do not train are made like all others, so this is for rewards that a group gives itself.
    """

    origins = (OWN,)

    def __init__(self, *, count: int = 32) -> None:
        if count < 2:
            raise ConfigError(f"rollout 'votes': count={count}; expected at least 2")
        self.count = count

    def ask(self, step: Step) -> Plan | None:
        if self.count < step.group_size:
            raise ConfigError(
                f"rollout 'votes': count={self.count} is less than training.group_size={step.group_size}, which train; "
                "raise it"
            )
        return Plan([Ask(self.count, index=index) for index in step.draw(step.prompts_per_step)])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        keep = batch.member < step.group_size
        return Plan(counted=keep, trained=keep)
