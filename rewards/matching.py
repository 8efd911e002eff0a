"""The best one-to-one matching of what was answered with what is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MOST = 300  # things compared; more is no answer
WALL = 8  # things that an answer may always hold; beyond, more than four for each true one are a wall, not an answer


def is_wall(found: int, right: int) -> bool:
    """Whether an answer names so many things that some must be right."""
    return found > max(WALL, 4 * right) or found > MOST


def best_total(found: Sequence[Any], right: Sequence[Any], worth: Callable[[Any, Any], float]) -> float:
    """The largest sum of `worth(found, right)` over one-to-one pairs."""
    if not found or not right:
        return 0.0
    from scipy.optimize import linear_sum_assignment

    table = [[worth(f, r) for r in right] for f in found]
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(sum(table[i][j] for i, j in zip(rows, columns, strict=True)))


def shared_of_larger(found: Sequence[Any], right: Sequence[Any], worth: Callable[[Any, Any], float]) -> float:
    """`best_total` over the larger count, so that gaps and extras both cost; 0 for a wall."""
    if is_wall(len(found), len(right)):
        return 0.0
    return best_total(found, right, worth) / max(len(found), len(right), 1)
