"""Exact match of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.registry import checks, reward


def true_texts(solution: Any) -> list[str]:
    """The texts that are right, for comparing: a list in the column means "any of these". RewardError for none."""
    return [answers.plain(dressing.narrow(text)) for text in answers.alternatives(solution)]


def exact(completion: str, solution: Any) -> float:
    """1 if the answer is the truth, or one of its alternatives, whatever its case, spacing and final punctuation."""
    said = answers.extract(completion)
    right = true_texts(solution)
    said = dressing.narrow(said)
    readings = (said, dressing.undressed(said), answers.corrected(said))
    return float(any(answers.plain(dressing.narrow(each)) in right for each in readings))


@reward("exact_match", success=True, check=checks(true_texts))
def exact_match(completions: Sequence[str], solution: Sequence[Any]) -> list[float]:
    """1 if answer and truth are the same text up to case, spacing and final punctuation, else 0; a list: any of it."""
    return [exact(c, s) for c, s in zip(completions, solution, strict=True)]
