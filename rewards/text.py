"""Exact match of texts."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.rewards import answers
from mmrl.rewards.registry import reward


def exact(completion: str, solution: str) -> float:
    """1 if answer and truth are the same text, whatever their case, spacing and final punctuation."""
    return float(answers.plain(answers.extract(completion)) == answers.plain(answers.truth(solution)))


@reward("exact_match", success=True)
def exact_match(completions: Sequence[str], solution: Sequence[str]) -> list[float]:
    """1 if answer and truth are the same text up to case, spacing and final punctuation, else 0."""
    return [exact(c, s) for c, s in zip(completions, solution, strict=True)]
