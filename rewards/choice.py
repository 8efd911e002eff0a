"""Questions with options: one right, several right, yes or no."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.registry import reward
from mmrl.rewards.text import exact


def single(completion: str, solution: str, options: Sequence[str] | None = None) -> float:
    """1 if the letters are equal; where the truth is no letter, 1 if the texts are.

    options  the texts of A, B, ...: lets an answer spell its option out
    """
    right = answers.option_letter(answers.truth(solution), options)
    if right is None:
        return exact(completion, solution)
    return float(answers.option_letter(answers.extract(completion), options) == right)


def several(completion: str, solution: str, *, strict: bool = False) -> float:
    """|P| / |S| if every chosen letter is right, else 0 (TW-GRPO, arXiv 2505.24718); `strict`: 1 if P = S."""
    right = answers.option_letters(answers.truth(solution))
    if not right:
        raise RewardError(f"solution {solution!r} names no option letter; expected letters such as 'A, C'")
    chosen = answers.option_letters(answers.extract(completion))
    if strict:
        return float(chosen == right)
    return len(chosen) / len(right) if chosen <= right else 0.0


def yes_no(completion: str, solution: str) -> float:
    """1 if both say yes, or both say no."""
    right = answers.boolean(answers.truth(solution))
    if right is None:
        raise RewardError(f"solution {solution!r} is neither yes nor no (also true, false, 1, 0)")
    return float(answers.boolean(answers.extract(completion)) is right)


@reward("choice", success=True)
def choice(completions, solution, options=None) -> list[float]:
    """1 if the chosen letter is the true one; `options`, the texts of A, B, ..., lets answers spell theirs out."""
    texts = options or [None] * len(completions)
    return [single(c, s, o) for c, s, o in zip(completions, solution, texts, strict=True)]


@reward("multi_choice", success=True)
def multi_choice(completions, solution, *, strict: bool = False) -> list[float]:
    """Share of the right letters chosen, 0 if a wrong one is; `strict`: 1 for exactly the right ones."""
    return [several(c, s, strict=strict) for c, s in zip(completions, solution, strict=True)]


@reward("boolean", success=True)
def boolean(completions, solution) -> list[float]:
    """1 if answer and truth both say yes (true, 1), or both no (false, 0)."""
    return [yes_no(c, s) for c, s in zip(completions, solution, strict=True)]
