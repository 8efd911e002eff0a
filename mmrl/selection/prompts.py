"""Which prompts now: the default sampler, a keyed shuffle of the whole data set every epoch."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.stages import stage


@stage("prompts", paper="-", confidence="ours", formula="a new permutation of all prompts each epoch")
class Shuffled:
    """Every prompt once an epoch, in an order keyed by (seed, epoch). Remembers how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """The next `count` dataset indices out of `size`."""
        indices: list[int] = []
        while len(indices) < count:
            epoch, place = divmod(self.taken, size)
            order = torch.randperm(size, generator=Key(key.seed, epoch, purpose="shuffle").generator())
            fresh = order[place : place + count - len(indices)].tolist()
            indices += fresh
            self.taken += len(fresh)
        return indices

    def observe(self, indices: list[int], batch: Batch) -> None:
        """A plain shuffle learns nothing from outcomes."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
