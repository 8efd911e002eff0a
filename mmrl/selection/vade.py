"""Prompts by a belief about their success that is drawn from, not averaged: VADE."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.outcomes import tried
from mmrl.stages import stage

Belief = tuple[float, float, int]
"""(a, b) of a Beta distribution, and the step it was last brought up to."""


def gain(success: np.ndarray, utility: Literal["hard", "even"] = "hard") -> np.ndarray:
    """What a prompt of this success rate teaches: p (1 - p)^2, largest at 1/3, or p (1 - p), largest at 1/2."""
    return success * (1 - success) ** (2 if utility == "hard" else 1)


def faded(belief: Belief, step: int, keep: float) -> tuple[float, float]:
    """(a, b) at `step`: what it knew beyond the even (1, 1) shrinks by `keep` a step."""
    a, b, since = belief
    share = keep ** max(step - since, 0)
    return 1 + share * (a - 1), 1 + share * (b - 1)


@stage(
    "prompts",
    "vade",
    paper="VADE, arXiv 2511.18902",
    formula="top B of u(p), p ~ Beta(a, b), u = p (1-p)^2; a <- 1 + g (a-1) + right, b <- 1 + g (b-1) + wrong",
    confidence="partly",
)
class Vade:
    """Thompson sampling: a success rate is drawn for every prompt, and those train whose draw would teach most.

    utility  "hard": p (1 - p)^2, which prefers prompts solved a third of the time; "even": p (1 - p)
    short    share of its past that a prompt keeps when it is answered anew
    long     share of it that every prompt keeps from one step to the next, since the policy moves

    A prompt never asked has the even belief, so it stays in play. Costs no rollouts. Outcomes must lie in [0, 1].
    Source: the abstract for the three parts, a survey for the utility; both shares are ours.
    """

    def __init__(self, *, utility: Literal["hard", "even"] = "hard", short: float = 0.9, long: float = 0.999) -> None:
        self.utility, self.short, self.long = utility, short, long
        self.belief: dict[int, Belief] = {}

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`, all different while there are enough, the best draw first."""
        even = (1.0, 1.0)
        known = [faded(self.belief[i], key.step, self.long) if i in self.belief else even for i in range(size)]
        a, b = np.array(known).T
        drawn = np.random.default_rng(key.at(purpose="vade").number).beta(a, b)
        best = np.argsort(-gain(drawn, self.utility), kind="stable").tolist()
        return [best[place % size] for place in range(count)]

    coming = select  # nothing is taken: the next draw depends on the key and on outcomes alone

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        for each in tried(indices, batch, "vade"):
            a, b = faded(self.belief.get(each.index, (1.0, 1.0, batch.step)), batch.step, self.long)
            right, wrong = each.right, each.count - each.right
            self.belief[each.index] = (1 + self.short * (a - 1) + right, 1 + self.short * (b - 1) + wrong, batch.step)

    def state_dict(self) -> dict[str, Any]:
        return {"belief": [[index, *belief] for index, belief in self.belief.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.belief = {int(index): (a, b, int(step)) for index, a, b, step in state["belief"]}
