"""Training that changes no weight: rollouts are collected and told to the strategies, which is where it learns."""

from __future__ import annotations

from typing import Any

from mmrl.training.trainer import Trainer


class FrozenTrainer(Trainer):
    """Steps without optimizer steps: what a rollout strategy remembers is all that grows, and checkpoints hold it.

    Held-out scores are those of the model as it is, since strategies never apply in evaluation: look at the reward.
    """

    def update(self, *_: Any, **__: Any) -> None:
        """None."""
