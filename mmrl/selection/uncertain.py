"""Prompts drawn by how uncertain their success is: SPO's prioritised sampling."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.objective.advantages.remembered import initial_beta, sampling_weight
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.outcomes import tried
from mmrl.stages import stage


@stage(
    "prompts",
    "spo_single_stream",
    paper="Single-stream Policy Optimization (SPO), arXiv 2509.13232",
    formula="P(prompt) ~ sqrt(v (1 - v)) + 0.05, v = a/(a + b) its tracked success",
    confidence="verified",
    modalities=("vlm", "video", "flow"),
)
class Uncertain:
    """Draws without replacement, prompts of intermediate success most often.

    keep  share of the past kept at each visit, as in advantage `spo_single_stream`

    Outcomes must lie in [0, 1]. Keeps its own Beta estimate of each dataset row. Source: verl-recipe, spo.
    """

    def __init__(self, *, keep: float = 0.875) -> None:
        self.keep = keep
        self.beta: dict[int, tuple[float, float]] = {}

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`, all different while there are enough."""
        weights = torch.tensor([sampling_weight(*self.beta.get(i, initial_beta(0, 0))) for i in range(size)])
        generator = key.at(purpose="uncertain prompts").generator()
        chosen: list[int] = []
        while len(chosen) < count:
            few = min(count - len(chosen), size)
            chosen += torch.multinomial(weights, few, generator=generator).tolist()
        return chosen

    coming = select  # nothing is taken: the next draw depends on the key and on outcomes alone

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        for each in tried(indices, batch, "spo_single_stream"):
            a, b = self.beta.get(each.index, initial_beta(0, 0))
            self.beta[each.index] = (self.keep * a + each.rate, self.keep * b + 1 - each.rate)

    def state_dict(self) -> dict[str, Any]:
        return {"beta": [[index, a, b] for index, (a, b) in self.beta.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.beta = {int(index): (a, b) for index, a, b in state["beta"]}
