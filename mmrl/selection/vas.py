"""Prompts by how much their rewards varied: MMR1's variance-aware sampling."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import group_mean
from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.selection.outcomes import tried
from mmrl.selection.prompts import Shuffled
from mmrl.stages import stage

NEVER_ASKED = 1 / 6
"""The mean of p (1 - p) over all success rates p."""


def promotion(rate: float, diversity: float, weights: tuple[float, float]) -> float:
    """The variance promotion score: a p (1 - p) + b times how differently the answers read."""
    return weights[0] * rate * (1 - rate) + weights[1] * diversity


@stage(
    "prompts",
    "mmr1_vas",
    paper="MMR1, arXiv 2509.21268",
    formula="share lambda of a batch: P(prompt) ~ a p (1-p) + b diversity, drawn with replacement; the rest shuffled",
    confidence="partly",
)
class Vas:
    """Part of a batch goes to prompts whose answers differ in reward, the rest is shuffled, so that none is forgotten.

    share      of a batch that is drawn by score
    every      steps between two readings of the scores; what is observed in between waits
    momentum   of an old score where a new one comes in
    diversity  the reward component whose mean over a prompt's answers says how different they are, such as a
               `text_diversity` of weight 0; None: variance alone, as in the released configuration
    balance    the weights a and b of variance and diversity

    Scores are scaled to [0, 1] over the data set, so the worst is never drawn; if all are equal, any is. A prompt
    never asked counts as of unknown success, 1/6. The authors roll out the whole data set anew at each reading; here
    the answers of training are what is read, which costs nothing. Source: LengSicong/MMR1, verl/curriculum; the
    balance is ours.
    """

    def __init__(
        self, *, share: float = 0.5, every: int = 4, momentum: float = 0.0, diversity: str | None = None,
        balance: tuple[float, float] = (0.8, 0.2),
    ) -> None:  # fmt: skip
        if not 0 <= share <= 1 or every < 1:
            raise ConfigError(f"prompts 'mmr1_vas': share {share}, every {every}: expected 0 to 1, and 1 or more")
        self.share, self.every, self.momentum, self.diversity = share, every, momentum, diversity
        self.weights = (1.0, 0.0) if diversity is None else balance
        self.scores: dict[int, float] = {}
        self.waiting: dict[int, float] = {}
        self.read = 0
        self.shuffled = Shuffled()

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`: those drawn by score first."""
        if key.step // self.every > self.read:
            self.scores, self.waiting, self.read = self.current(key.step), {}, key.step // self.every
        indices = self.coming(count, size, key)
        self.shuffled.taken += count - self.weighted(count)
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        scores, weighted = self.current(key.step), self.weighted(count)
        worth = torch.tensor([scores.get(i, self.weights[0] * NEVER_ASKED) for i in range(size)], dtype=torch.float64)
        worth = worth - worth.min() if worth.max() > worth.min() else torch.ones_like(worth)
        generator = key.at(purpose="mmr1_vas").generator()
        drawn = torch.multinomial(worth, weighted, replacement=True, generator=generator).tolist() if weighted else []
        return drawn + self.shuffled.coming(count - weighted, size, key)

    def weighted(self, count: int) -> int:
        return int(self.share * count + 1e-9)

    def current(self, step: int) -> dict[int, float]:
        """The scores as a step sees them: with what waited, where a reading is due."""
        return self.scores | self.waiting if step // self.every > self.read else self.scores

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """Group g of the batch belongs to dataset row `indices[g]`."""
        for each in tried(indices, batch, "mmr1_vas"):
            score = promotion(each.rate, self._diversity(batch, each.group), self.weights)
            old = self.waiting.get(each.index, self.scores.get(each.index, score))
            self.waiting[each.index] = self.momentum * old + (1 - self.momentum) * score

    def _diversity(self, batch: Batch, group: int) -> float:
        if self.diversity is None:
            return 0.0
        if self.diversity not in batch.components:
            raise ConfigError(f"prompts 'mmr1_vas': {unknown('reward component', self.diversity, batch.components)}")
        values = batch.components[self.diversity]
        mean = group_mean(values, batch.group, batch.counted & ~torch.isnan(values))
        return float(mean[batch.group == group][0])

    def state_dict(self) -> dict[str, Any]:
        known = {"scores": self.scores, "waiting": self.waiting}
        return {
            **{name: [[i, s] for i, s in values.items()] for name, values in known.items()},
            "read": self.read, "shuffled": self.shuffled.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scores, self.waiting = ({int(i): s for i, s in state[name]} for name in ("scores", "waiting"))
        self.read = state["read"]
        self.shuffled.load_state_dict(state["shuffled"])
