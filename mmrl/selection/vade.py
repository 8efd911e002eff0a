"""Prompts by a belief about their success that is drawn from, not averaged: VADE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.selection.outcomes import tried
from mmrl.selection.prompts import column
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
    confidence="reconstructed",
)
class Vade:
    """Thompson sampling: a success rate is drawn for every prompt, and those train whose draw would teach most.

    utility  "hard": p (1 - p)^2, which prefers prompts solved a third of the time; "even": p (1 - p)
    short    share of its past that a prompt keeps when it is answered anew
    long     share of it that every prompt keeps from one step to the next, since the policy moves
    kinds    columns of the data set, such as its source or level: a prompt then begins with what prompts of its kind
             came to lately, so that a large data set need not be asked once through. None: with the even belief
    trust    answers that the rate of a kind is worth

    A prompt never asked stays in play, since its belief is wide. Costs no rollouts. Outcomes must lie in [0, 1].
    Source: the abstract for the three parts, a survey for the utility; both shares and the kinds are ours.
    """

    def __init__(
        self, *, utility: Literal["hard", "even"] = "hard", short: float = 0.9, long: float = 0.999,
        kinds: list[str] | None = None, trust: float = 4.0,
    ) -> None:  # fmt: skip
        if not (0 <= short <= 1 and 0 <= long <= 1 and trust >= 0):
            raise ConfigError(
                f"prompts 'vade': short {short}, long {long}, trust {trust}: expected shares, and 0 or more"
            )
        self.utility, self.short, self.long, self.kinds, self.trust = utility, short, long, kinds, trust
        self.belief: dict[int, Belief] = {}
        self.kind_of: list[str] = []
        self.lately: dict[str, tuple[float, float]] = {}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn of which kind each row is."""
        if self.kinds:
            rows = range(len(prompts))
            names = self.kinds
            self.kind_of = ["|".join(str(column(prompts, i, n, "prompts 'vade'")) for n in names) for i in rows]

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`, all different while there are enough, the best draw first."""
        a, b = np.array([self.expected(i, key.step) for i in range(size)]).T
        drawn = np.random.default_rng(key.at(purpose="vade").number).beta(a, b)
        best = np.argsort(-gain(drawn, self.utility), kind="stable").tolist()
        return [best[place % size] for place in range(count)]

    coming = select  # nothing is taken: the next draw depends on the key and on outcomes alone

    def expected(self, index: int, step: int) -> tuple[float, float]:
        """(a, b) of a prompt at `step`: its own belief, and what its kind adds."""
        a, b = faded(self.belief[index], step, self.long) if index in self.belief else (1.0, 1.0)
        right, count = self.lately.get(self.kind_of[index], (0.0, 0.0)) if self.kind_of else (0.0, 0.0)
        share = min(self.trust / count, 1.0) if count else 0.0
        return a + share * right, b + share * (count - right)

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        seen = tried(indices, batch, "vade")
        if self.kind_of:
            for kind in dict.fromkeys(self.kind_of[each.index] for each in seen):
                mine = [each for each in seen if self.kind_of[each.index] == kind]
                right, count = self.lately.get(kind, (0.0, 0.0))
                self.lately[kind] = (
                    self.short * right + sum(each.right for each in mine),
                    self.short * count + sum(each.count for each in mine),
                )
        for each in seen:
            a, b = faded(self.belief.get(each.index, (1.0, 1.0, batch.step)), batch.step, self.long)
            right, wrong = each.right, each.count - each.right
            self.belief[each.index] = (1 + self.short * (a - 1) + right, 1 + self.short * (b - 1) + wrong, batch.step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "belief": [[index, *belief] for index, belief in self.belief.items()],
            "lately": [[kind, *rate] for kind, rate in self.lately.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.belief = {int(index): (a, b, int(step)) for index, a, b, step in state["belief"]}
        self.lately = {kind: (right, count) for kind, right, count in state["lately"]}
