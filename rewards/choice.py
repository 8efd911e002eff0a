"""Questions with options: one right, several right, yes or no."""

from __future__ import annotations

from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.booleans import boolean, true_boolean
from mmrl.rewards.chosen import chosen, listed_options
from mmrl.rewards.chosen import several as chosen_several
from mmrl.rewards.options import read_options, true_option
from mmrl.rewards.registry import checks, reward


def single(completion: str, solution: Any, options: Any = None) -> float:
    """1 if the answer chooses the true option, by letter or text; without options and letter, 1 if the texts are equal.

    options  the texts of A, B, ..., in any form that `mmrl.rewards.options` reads
    """
    label, text = true_option(solution, options)
    answer = answers.extract(completion)
    if label is None:
        return float(answers.plain(answers.bare(answer)) == answers.plain(text))
    return float(chosen(answer, read_options(options)) == label)


def true_options(solution: Any, options: Any = None) -> frozenset[str]:
    """The labels of all right options; RewardError for a truth that is no list of options."""
    known = read_options(options)
    if isinstance(solution, list | tuple) and solution:
        labels = [true_option(each, options)[0] for each in solution]
        if all(labels):
            return frozenset(label for label in labels if label)
    else:
        found = listed_options(answers.truth(solution), known)
        if found:
            return found
    answers.refuse(solution, "names no option letter", f"letters of {known.labels[0]} to {known.labels[-1]}, as 'A, C'")


def several(completion: str, solution: Any, options: Any = None, *, strict: bool = False) -> float:
    """|P| / |S| if every chosen letter is right, else 0 (TW-GRPO, arXiv 2505.24718); `strict`: 1 if P = S."""
    right = true_options(solution, options)
    picked = chosen_several(answers.extract(completion), read_options(options))
    if strict:
        return float(picked == right)
    return len(picked) / len(right) if picked <= right else 0.0


def yes_no(completion: str, solution: Any) -> float:
    """1 if both say yes, or both say no."""
    return float(boolean(answers.extract(completion)) is true_boolean(solution))


@reward("choice", success=True, check=checks(true_option, "options"))
def choice(completions, solution, options=None) -> list[float]:
    """1 if the chosen letter is the true one; `options`, the texts of A, B, ..., lets answers spell theirs out."""
    texts = options or [None] * len(completions)
    return [single(c, s, o) for c, s, o in zip(completions, solution, texts, strict=True)]


@reward("multi_choice", success=True, check=checks(true_options, "options"))
def multi_choice(completions, solution, options=None, *, strict: bool = False) -> list[float]:
    """Share of the right letters chosen, 0 if a wrong one is; `strict`: 1 for exactly the right ones."""
    texts = options or [None] * len(completions)
    return [several(c, s, o, strict=strict) for c, s, o in zip(completions, solution, texts, strict=True)]


@reward("boolean", success=True, check=checks(true_boolean))
def boolean_reward(completions, solution) -> list[float]:
    """1 if answer and truth both say yes (true, 1), or both no (false, 0)."""
    return [yes_no(c, s) for c, s in zip(completions, solution, strict=True)]
