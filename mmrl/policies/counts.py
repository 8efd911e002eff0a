"""What a policy counts of a step, in a form that ranks can add up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean that adds like its parts do: the sum of two is the mean over both.

    >>> float(Mean(4, 2) + Mean(0, 2))
    1.0
    """

    total: float
    count: int

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def __float__(self) -> float:
        return self.total / max(self.count, 1)
