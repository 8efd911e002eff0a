"""Rewards of quality assessment: VQAThinker's regression and rank, Q-Hawkeye's exponential.

VQAThinker (arXiv 2508.06051): the rank reward compares a rating with those of every other video of the batch. Its
temporal part (a second group on perturbed frames) is off in the released script and left out. Ratings that cannot be
read are worth 0; the authors' code gives them a random number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.kinds.ratings import bell, rating
from mmrl.rewards.numeric import true_number
from mmrl.rewards.registry import checks, reward

STEADY = 1e-6
WIDTH, FEWEST_DECIMALS, ROUNDED = 0.5, 2, 0.8
_DECIMALS = re.compile(r"\d+\.(\d+)")


def true_rating(solution: Any) -> float:
    """The mean opinion score of a truth."""
    return true_number(solution)[0]


def read(completion: str, low: float, high: float) -> float | None:
    """The rating of a completion on the scale; None for none."""
    found = rating(answers.extract(completion))
    return found if found is not None and low <= found <= high else None


def fidelity(rated: float, others: Sequence[float], spread: float, right: float, other_right: float) -> float:
    """sqrt(p g) + sqrt((1 - p)(1 - g)) of the chance p that this video is rated above the other; at most 1."""
    scale = math.sqrt(spread + (variance(others) if len(others) > 1 else 0.0) + STEADY)
    p = NormalDist().cdf((rated - fmean(others)) / scale)
    g = 1.0 if right > other_right else 0.5 if right == other_right else 0.0
    return min(1.0, math.sqrt(p * g + STEADY) + math.sqrt((1 - p) * (1 - g) + STEADY))


def ranks(predicted: Sequence[float | None], right: Sequence[float], keys: Sequence[Any]) -> list[float]:
    """The rank reward of every rating: the mean fidelity against every other video. Alone in a batch: 0 for all."""
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    rated = {key: [v for i in rows if (v := predicted[i]) is not None] for key, rows in groups.items()}
    spreads = {key: variance(values) if len(values) > 1 else 0.0 for key, values in rated.items()}
    scores = []
    for i, key in enumerate(keys):
        own = predicted[i]
        others = [other for other in groups if other != key and rated[other]]
        if own is None or not others:
            scores.append(0.0)
            continue
        worth = [fidelity(own, rated[o], spreads[key], right[i], right[groups[o][0]]) for o in others]
        scores.append(fmean(worth))
    return scores


@reward(
    "vqathinker",
    success=True,
    check=checks(true_rating),
    paper="VQAThinker, arXiv 2508.06051",
    formula="exp(-d^2 / 2 s^2) [x .8 under 2 decimals] + mean over videos of sqrt(p g) + sqrt((1-p)(1-g)) + format",
    confidence="partly",
)
def vqathinker(
    completions, solution, prompt_id=None, *, low: float = 1.0, high: float = 5.0, width: float = WIDTH
) -> list[dict[str, float]]:
    """A video's quality: bell-shaped regression, rank against the other videos of the batch, and format, unweighted."""
    right = [true_rating(each) for each in solution]
    predicted = [read(completion, low, high) for completion in completions]
    keys = list(prompt_id) if prompt_id is not None else right
    scores = []
    for completion, value, mos, rank in zip(completions, predicted, right, ranks(predicted, right, keys), strict=True):
        decimals = _DECIMALS.search(answers.extract(completion))
        exact = 1.0 if decimals and len(decimals[1]) >= FEWEST_DECIMALS else ROUNDED
        near = 0.0 if value is None else exact * bell(value, mos, width)
        form = float(value is not None and bool(answers.tagged(completion)) and "</think>" in completion)
        parts = {"regression": near, "rank": rank, "format": form}
        scores.append(
            {"score": sum(parts.values()), "success": float(near >= 0.5), **parts, "parsed": float(value is not None)}
        )
    return scores


@reward(
    "q_hawkeye",
    success=True,
    check=checks(true_rating),
    paper="Q-Hawkeye, arXiv 2601.22920; code AMAP-ML/Q-Hawkeye, grpo_am.py",
    formula="exp(-|d| / .3) + .8 [thought, then a number] - .25 (words, letters said more than 5 times), at least -2",
)
def q_hawkeye(
    completions, solution, *, low: float = 1.0, high: float = 5.0, tau: float = 0.3
) -> list[dict[str, float | None]]:
    """A picture's quality: exp(-|d| / tau), .8 for the format, and a penalty on repetition, as the authors weigh them.

    The part `predicted_score` is the rating itself, for credit `q_hawkeye_uncertainty`; none where none was read.
    """
    scores = []
    for completion, truth in zip(completions, solution, strict=True):
        right = min(max(true_rating(truth), low), high)
        value = rating(answers.extract(completion))
        clipped = None if value is None else min(max(value, low), high)
        near = 0.0 if clipped is None else math.exp(-abs(clipped - right) / tau)
        form = 0.8 * _rated_after_thought(completion)
        total = near + form + (repetition(completion) if value is not None else 0.0)
        scores.append({
            "score": total, "success": float(near >= 0.5), "accuracy": near, "format": form,
            "parsed": float(value is not None), "predicted_score": clipped,
        })  # fmt: skip
    return scores


def _rated_after_thought(completion: str) -> bool:
    return bool(re.fullmatch(r"\s*<think>\s*.+?</think>\s*<answer>\s*[\d.]+?\s*</answer>\s*", completion, re.DOTALL))


def repetition(completion: str) -> float:
    """-.25 for each use of a word or letter of the answer that comes more than five times; at least -2."""
    answer = re.sub(r"[^\w\s]", "", answers.extract(completion))
    counts = [n for found in (answer.split(" "), answer) for n in Counter(found).values()]
    return max(-2.0, -0.25 * sum(n for n in counts if n > 5))
