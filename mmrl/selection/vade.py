"""Prompts by a belief about their success that is drawn from, not averaged: VADE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.selection.kinds import Kinds
from mmrl.selection.outcomes import tried
from mmrl.stages import stage

Belief = tuple[float, float, int]
"""(a, b) of a Beta distribution, and the step it was last brought up to."""


def gain(success: np.ndarray, utility: Literal["hard", "even"] = "hard") -> np.ndarray:
    """What a prompt of this success rate teaches: p (1 - p)^2, largest at 1/3, or p (1 - p), largest at 1/2."""
    return success * (1 - success) ** (2 if utility == "hard" else 1)


def expected_gain(a: np.ndarray, b: np.ndarray, utility: Literal["hard", "even"] = "hard") -> np.ndarray:
    """E[gain(p)] for p ~ Beta(a, b)."""
    whole = a + b
    even = a * b / (whole * (whole + 1))
    return even * (b + 1) / (whole + 2) if utility == "hard" else even


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
    kinds    columns of the data set, such as its source or level: a prompt then begins with the Beta that fits what
             groups of its kind came to lately, their success and how much it varied within a group, so that a large
             data set need not be asked once through. None: with the even belief
    draw     "best": the prompts whose drawn rate would teach most; "share": each as often as it teaches in expectation
    rest     steps in which a prompt that was answered comes after all others, so that few are not learned by heart

    A prompt never asked stays in play, since its belief is wide. Costs no rollouts. Outcomes must lie in [0, 1].
    Source: the abstract for the three parts, a survey for the utility; both shares, the kinds, draw "share" and the
    rest are ours.
    """

    def __init__(
        self, *, utility: Literal["hard", "even"] = "hard", short: float = 0.9, long: float = 0.999,
        kinds: list[str] | None = None, draw: Literal["best", "share"] = "best", rest: int = 0,
    ) -> None:  # fmt: skip
        if not (0 <= short <= 1 and 0 <= long <= 1 and rest >= 0):
            raise ConfigError(
                f"prompts 'vade': short {short}, long {long}, rest {rest}: expected shares, and 0 or more"
            )
        self.utility, self.short, self.long, self.draw, self.rest = utility, short, long, draw, rest
        self.kinds = Kinds(kinds, long, "prompts 'vade'") if kinds else None
        self.belief: dict[int, Belief] = {}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn of which kind each row is."""
        if self.kinds:
            self.kinds.meet(prompts)

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`, all different while there are enough, the best draw first."""
        a, b = self.expected(size, key.step)
        draws = np.random.default_rng(key.at(purpose="vade").number)
        if self.draw == "best":
            worth = gain(draws.beta(a, b), self.utility)
        else:  # the largest of log w + Gumbel noise are a draw without replacement in proportion to w
            worth = np.log(expected_gain(a, b, self.utility)) + draws.gumbel(size=size)
        best = np.lexsort((-worth, self._resting(size, key.step))).tolist()
        return [best[place % size] for place in range(count)]

    coming = select  # nothing is taken: the next draw depends on the key and on outcomes alone

    def expected(self, size: int, step: int) -> np.ndarray:
        """(2, size) the (a, b) of each prompt at `step`: what it begins with, and what is left of its own answers."""
        beliefs = np.ones((2, size))
        if self.kinds:
            begun = self.kinds.beliefs(step)
            beliefs = np.array([begun[kind] for kind in self.kinds.of[:size]]).T
        for index, belief in self.belief.items():
            a, b = faded(belief, step, self.long)
            beliefs[:, index] += a - 1, b - 1
        return beliefs

    def _resting(self, size: int, step: int) -> np.ndarray:
        """(size,) bool: whether a prompt was answered in the last `rest` steps."""
        resting = np.zeros(size, dtype=bool)
        resting[[index for index, (_, _, since) in self.belief.items() if step - since <= self.rest]] = self.rest > 0
        return resting

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        seen = tried(indices, batch, "vade")
        if self.kinds:
            self.kinds.observe(seen, batch.step)
        for each in seen:
            a, b = faded(self.belief.get(each.index, (1.0, 1.0, batch.step)), batch.step, self.long)
            right, wrong = each.right, each.count - each.right
            self.belief[each.index] = (1 + self.short * (a - 1) + right, 1 + self.short * (b - 1) + wrong, batch.step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "belief": [[index, *belief] for index, belief in self.belief.items()],
            "kinds": self.kinds.state_dict() if self.kinds else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.belief = {int(index): (a, b, int(step)) for index, a, b, step in state["belief"]}
        if self.kinds:
            self.kinds.load_state_dict(state["kinds"])
