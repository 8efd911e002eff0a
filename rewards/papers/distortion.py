"""REACT (Thinking with Frames): a video is as good as its worst frames are whole.

A judge scores frames for structural distortion, 1 (broken) to 5 (whole). First evenly spread frames; then more where
distortion is likely: near low ones, drawn with probability softmax(-q / tau). The video is worth the mean of the lowest
share of all frames looked at, scaled onto [0, 1], so that a glitch of a few frames is not averaged away.

`judge: file.py:function` is called as `f(frames)` and returns a score for each. `react_pairs` is the reward that trains
such a judge: does it order pairs of videos as people do?
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mmrl import plugins
from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.pictures import is_image
from mmrl.rewards.registry import reward

LOW, HIGH = 1.0, 5.0
NEIGHBOURS = (-1, 1, -2, 2)


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    """Of -values / temperature: low values are likely."""
    least = min(values)
    raised = [math.exp(-(value - least) / temperature) for value in values]
    return [each / sum(raised) for each in raised]


def further_frames(
    seen: Mapping[int, float], count: int, more: int, temperature: float, rng: random.Random
) -> list[int]:
    """At most `more` frames of `count` that were not seen: neighbours of frames drawn by how low they scored."""
    chosen: list[int] = []
    places = list(seen)
    shares = softmax([seen[p] for p in places], temperature)
    for _ in range(more):
        around = rng.choices(places, shares)[0]
        free = [around + d for d in NEIGHBOURS if 0 <= around + d < count]
        free = [f for f in free if f not in seen and f not in chosen]
        free = free or [f for f in range(count) if f not in seen and f not in chosen]
        if not free:
            break
        chosen.append(min(free, key=lambda f: abs(f - around)))
    return chosen


def worth(scores: Sequence[float], lowest: float) -> float:
    """Mean of the lowest share of the scores, at least one of them, onto [0, 1]."""
    kept = sorted(scores)[: max(1, math.ceil(lowest * len(scores)))]
    return (fmean(kept) - LOW) / (HIGH - LOW)


def check_judge(row: Mapping[str, Any], *, judge: str = "", lowest: float = 0.3, **_: Any) -> None:
    """Raise RewardError for a judge that is not there."""
    if not plugins.is_reference(judge):
        raise RewardError(f"react: judge {judge!r}; name who scores frames: options: {{judge: file.py:function}}")
    if not 0 < lowest <= 1:
        raise RewardError(f"react: lowest={lowest:g}; expected a share of the frames above 0, at most 1")
    plugins.load(judge, "react's judge")


@reward(
    "react",
    isolated=False,
    check=check_judge,
    paper="Thinking with Frames (REACT): frame-level structural distortion, arXiv 2601.04033",
    formula="mean of the lowest rho of frame scores, onto [0, 1]; further frames near low ones by softmax(-q / tau)",
    confidence="reconstructed",
)
def react(
    completions, *, judge: str = "", frames: int = 8, more: int = 8, temperature: float = 0.5, lowest: float = 0.3,
    seed: int = 0,
) -> list[dict[str, float]]:  # fmt: skip
    """How whole the worst frames of a video are; `first` by the evenly spread frames alone, `frames` looked at.

    frames, more  evenly spread, and then where distortion is likely
    temperature   of that choice; lower looks at the lowest only
    lowest        share of the frames that counts

    Only the paper's abstract and a summary were read: the two stages are theirs, every number and formula here ours.
    """
    ask = _scorer(judge)
    scores = []
    for video in completions:
        pictures = [video] if is_image(video) else list(video)
        count = min(frames, len(pictures))
        places = [int((i + 0.5) * len(pictures) / count) for i in range(count)]
        seen = dict(zip(places, ask([pictures[p] for p in places]), strict=True))
        first = worth(list(seen.values()), lowest)
        further = further_frames(seen, len(pictures), more, temperature, random.Random(f"{seed} {seen}"))
        if further:
            seen |= dict(zip(further, ask([pictures[p] for p in further]), strict=True))
        scores.append({"score": worth(list(seen.values()), lowest), "first": first, "frames": float(len(seen))})
    return scores


def _scorer(judge: str) -> Callable[[list[Any]], list[float]]:
    function = plugins.load(judge, "react's judge")

    def ask(pictures: list[Any]) -> list[float]:
        said = [float(each) for each in function(pictures)]
        if len(said) != len(pictures) or not all(LOW <= each <= HIGH for each in said):
            raise ValueError(
                f"the judge gave {said!r} for {len(pictures)} frames; expected {LOW:g} to {HIGH:g} for each"
            )
        return said

    return ask


@reward(
    "react_pairs",
    paper="Thinking with Frames (REACT): frame-level structural distortion, arXiv 2601.04033",
    formula="mean over the group's pairs of 1[sign(s_a - s_b) = people's], a tie is 1/2; + format",
    method="react",
    confidence="reconstructed",
)
def react_pairs(completions, solution, pair, *, form: float = 0.1) -> list[dict[str, float]]:
    """What a judge of videos learns from: its scores of the two videos of a pair should stand as people's do.

    Columns: `solution`, what people gave this video, and `pair`, equal for the two videos that are compared. Each
    answer is compared with all answers to the other video; one that holds no number from 1 to 5 orders nothing.
    """
    given = [_score(text) for text in completions]
    scores = []
    for i, mine in enumerate(given):
        others = [j for j, name in enumerate(pair) if name == pair[i] and solution[j] != solution[i]]
        if not others:
            raise RewardError(f"react_pairs: pair {pair[i]!r} has one video, or two that people liked alike")
        right = [_ordered(mine, given[j], float(solution[i]) - float(solution[j])) for j in others]
        order, shaped = fmean(right), float(mine is not None)
        scores.append({"score": order + form * shaped, "order": order, "format": shaped})
    return scores


def _score(text: str) -> float | None:
    try:
        value = float(answers.extract(text).strip())
    except ValueError:
        return None
    return value if LOW <= value <= HIGH else None


def _ordered(mine: float | None, other: float | None, people: float) -> float:
    if mine is None or other is None:
        return 0.0
    return 0.5 if mine == other else float((mine > other) == (people > 0))
