"""`training.ahead: n`: an engine writes the rollouts of steps k + 1 to k + n while step k trains.

The weights that wrote a step's rows are at most n steps old, and which they are depends on nothing but the step:
whom it asks first, and with which weights, is decided at the beginning of step k - n by what was seen until then,
whatever the timing. What a strategy asks for besides, having seen what came, is written in the step itself, with its
weights. Nothing is written across a step whose log-probs are checked (`training.check_every`): that one starts with
rows of the present weights, so that the check compares like with like.
"""

from __future__ import annotations

from typing import Any

from mmrl.errors import ConfigError
from mmrl.policies.base import Policy
from mmrl.record import Rollouts
from mmrl.shown import tell
from mmrl.training import engine_check
from mmrl.training.collect import Collector
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import together


class Ahead:
    """Asks the policy's engine for steps that are still to come."""

    def __init__(self, collector: Collector, policy: Policy, config: TrainingConfig):
        self.collector, self.policy, self.config = collector, policy, config
        self.asked = 0
        if config.ahead and (why := self._refusal()):
            raise ConfigError(f"training.ahead={config.ahead}: {why}")

    def _refusal(self) -> str:
        """Why nothing can be written ahead here; "" where it can."""
        if not self.policy.acts_apart:
            return "the policy writes its responses itself; take an engine with weights of its own, policy.engine=vllm"
        if names := self.collector.strategies.entangled:
            return (
                f"rollout {', '.join(names)} goes on from a first round of its own: one step at a time is in its mind"
            )
        return ""

    def ask(self, step: int) -> None:
        """At the beginning of step `step`, from 0: whatever may be written now with the weights as they are."""
        if not self.config.ahead:
            return
        for number in range(max(step, self.asked), self._last(step) + 1):
            requests, key = self.collector.coming(number)
            together(lambda: self.collector.actor.act_ahead(requests, key), self.collector.accelerator)  # noqa: B023
            self.asked = number + 1

    def _last(self, step: int) -> int:
        last = min(step + self.config.ahead, self.config.steps - 1)
        due = (n for n in range(step + 1, last + 1) if engine_check.is_due(n, self.config.check_every, self.policy))
        return next(due, last + 1) - 1

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Optimizer steps between the weights that wrote the rows and those that are trained on them."""
        if not self.config.ahead:
            return {}
        age = (self.policy.version - rollouts.replay["version"]).double()
        return {"ahead/staleness_mean": age.mean().item(), "ahead/staleness_max": age.max().item()}

    def close(self) -> None:
        if self.config.ahead:
            self.policy.leave_ahead()

    def state_dict(self) -> dict[str, Any]:
        begun = {
            number: [row for row in b.groups.rows if row is not None] for number, b in self.collector.begun.items()
        }
        return {"drawn": {str(number): rows for number, rows in sorted((self.collector.drawn | begun).items())}}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Rows that were being written are lost; their prompts are asked again, with the weights of now."""
        self.asked = step
        self.collector.drawn = {int(n): rows for n, rows in state.get("drawn", {}).items() if int(n) >= step}
        if self.collector.drawn and self.config.ahead:
            numbers = ", ".join(str(n + 1) for n in sorted(self.collector.drawn))
            tell(f"rollouts of step {numbers} were being written and are lost: their prompts are asked again, with the "
                 f"weights of step {step}")  # fmt: skip
