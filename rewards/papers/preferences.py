"""Pref-GRPO: what an output is worth is the share of its group that a judge of pairs finds worse.

Pointwise scores that hardly differ still become large advantages once a group is normalised (the paper's illusory
advantage): scores .7012, .7013, .7015, .7010 become -.18, .18, .89, -.89. Win rates of four outputs have a standard
deviation of about .37 whatever the judge's scale.

The judge is `judge: file.py:function`, called once as `f(first, second, **columns)` with equally long lists, columns of
the data set being those it names; it says of each pair how much the first is the better one: 1, 0, .5 for a tie, None
where it cannot say (counted as a tie, as the authors count what they cannot parse). Or `judge` is a registered reward
of single outputs: then P(first better) is 1, 0 or .5 by its scores, or with `scale` the Bradley-Terry probability
sigmoid((s_i - s_j) / scale).
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from mmrl import plugins
from mmrl.errors import RewardError
from mmrl.rewards.registry import registered, reward, score_of

Pair = tuple[int, int]
TIE = 0.5
PRIOR = 0.5
"""Half a win and half a loss against an output of average strength, for each: without them an output that won all its
judged pairs is infinitely strong."""
SWEEPS = 200


def win_rates(size: int, wins: Mapping[Pair, float]) -> list[float]:
    """The share of the others that each of `size` outputs beats; `wins[i, j]`: how far i beats j, of every pair."""
    rates = [0.0] * size
    for (i, j), win in wins.items():
        rates[i] += win
        rates[j] += 1 - win
    return [rate / max(size - 1, 1) for rate in rates]


def bradley_terry(size: int, wins: Mapping[Pair, float]) -> list[float]:
    """Win rates against all others where only some pairs were judged, from strengths p fitted to those that were.

    P(i beats j) = p_i / (p_i + p_j), by Hunter's minorise-maximise steps (Ann. Statist. 2004), with half a win and half
    a loss of each output against strength 1.
    """
    strength = [1.0] * size
    for _ in range(SWEEPS):
        won, met = [PRIOR] * size, [2 * PRIOR / (1 + p) for p in strength]
        for (i, j), win in wins.items():
            won[i] += win
            won[j] += 1 - win
            share = 1 / (strength[i] + strength[j])
            met[i] += share
            met[j] += share
        strength = [w / m for w, m in zip(won, met, strict=True)]
    others = [[p / (p + q) for j, q in enumerate(strength) if j != i] for i, p in enumerate(strength)]
    return [sum(each) / max(len(each), 1) if each else TIE for each in others]


def chosen_pairs(size: int, share: float, rng: random.Random) -> list[Pair]:
    """Which of the G (G - 1) / 2 pairs are judged, each in random order, since judges favour a side. A ring through all
    outputs comes first, so that each is compared at least twice; the others are drawn."""
    everyone = list(combinations(range(size), 2))
    count = max(min(size, len(everyone)), round(share * len(everyone)))
    around = rng.sample(range(size), size)
    ring = {tuple(sorted((around[k], around[(k + 1) % size]))) for k in range(size)} - {(k, k) for k in range(size)}
    rest = [pair for pair in everyone if pair not in ring]
    pairs = everyone if count >= len(everyone) else [*sorted(ring), *rng.sample(rest, count - len(ring))]
    return [pair if rng.random() < 0.5 else (pair[1], pair[0]) for pair in pairs]  # type: ignore[misc]


def check_judge(row: Mapping[str, Any], *, judge: str = "", share: float = 1.0, **_: Any) -> None:
    """Raise RewardError for a judge that is not there, or a share that judges nothing."""
    if not judge:
        raise RewardError("pref_grpo: name who judges pairs: options: {judge: file.py:function} or a registered reward")
    if not 0 < share <= 1:
        raise RewardError(f"pref_grpo: share={share:g}; expected a share of the pairs above 0, at most 1")
    _judge(judge, 0.0)


@reward(
    "pref_grpo",
    isolated=False,
    check=check_judge,
    paper="Pref-GRPO: pairwise preference reward-based GRPO for stable text-to-image RL, arXiv 2508.20751",
    formula="R_i = sum_j P(i beats j) / (G - 1) over the group; a tie and what cannot be judged are 1/2",
)
def pref_grpo(
    completions,
    prompt_id,
    *,
    prompts=None,
    judge: str = "",
    share: float = 1.0,
    scale: float = 0.0,
    seed: int = 0,
    **columns,
) -> list[dict[str, float]]:
    """Win rate inside the group by a judge of pairs; `judged` is the share of pairs judged, `ties` of those undecided.

    share  of the pairs that is judged, at least a ring through the group: below 1, win rates come from a Bradley-Terry
           fit of the pairs that were. G(G - 1)/2 pairs are 28 for 8 outputs
    scale  of a judge of single outputs: 0 decides by the larger score
    seed   of the pairs and of their order

    The mean of a group is 1/2 where all pairs are judged, so a curve of this reward says nothing: watch another.
    Groups must lie on one rank, as they do. Source: CodeGoat24/Pref-GRPO, fastvideo/rewards/unifiedreward_think.py,
    which judges each pair once in a fixed order and rounds win rates to three digits; ours draws the order and does
    not round.
    """
    columns |= {} if prompts is None else {"prompts": prompts}
    groups: dict[Any, list[int]] = {}
    for place, name in enumerate(prompt_id):
        groups.setdefault(name, []).append(place)
    if alone := [name for name, rows in groups.items() if len(rows) < 2]:
        raise RewardError(f"pref_grpo: prompt {alone[0]!r} has one output, and there is nothing to compare it with")
    pairs = {name: chosen_pairs(len(rows), share, random.Random(f"{seed} {name}")) for name, rows in groups.items()}
    flat = [(groups[name][i], groups[name][j]) for name, each in pairs.items() for i, j in each]
    said = iter(_judge(judge, scale)(completions, flat, columns))
    scores: list[dict[str, float]] = [{}] * len(completions)
    for name, rows in groups.items():
        wins = {pair: next(said) for pair in pairs[name]}
        every = len(rows) * (len(rows) - 1) // 2
        rates = (win_rates if len(wins) == every else bradley_terry)(len(rows), wins)
        told = {"judged": len(wins) / every, "ties": sum(win == TIE for win in wins.values()) / len(wins)}
        for row, rate in zip(rows, rates, strict=True):
            scores[row] = {"score": rate, **told}
    return scores


def _judge(name: str, scale: float) -> Callable[[Sequence[Any], list[Pair], Mapping[str, Sequence]], list[float]]:
    """(outputs, pairs, columns) -> how far the first of each pair is the better one."""
    if name in registered():
        return _by_scores(name, scale)
    if not plugins.is_reference(name):
        raise RewardError(f"pref_grpo: judge {name!r} is neither a registered reward nor file.py:function")
    function = plugins.load(name, "pref_grpo's judge")
    read = [p for p in inspect.signature(function).parameters if p not in ("first", "second")]

    def by_pairs(outputs: Sequence[Any], pairs: list[Pair], columns: Mapping[str, Sequence]) -> list[float]:
        if missing := [key for key in read if key not in columns]:
            raise RewardError(
                f"pref_grpo: judge {name!r} reads column {missing[0]!r}, which the data set does not have"
            )
        given = {key: [columns[key][i] for i, _ in pairs] for key in read}
        said = function([outputs[i] for i, _ in pairs], [outputs[j] for _, j in pairs], **given)
        if len(said) != len(pairs):
            raise ValueError(f"the judge gave {len(said)} answers for {len(pairs)} pairs")
        return [_preference(each) for each in said]

    return by_pairs


def _preference(value: Any) -> float:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return TIE
    if not 0 <= value <= 1:
        raise ValueError(f"the judge said {value!r} of a pair; expected 0 to 1, or None")
    return float(value)


def _by_scores(name: str, scale: float) -> Callable[[Sequence[Any], list[Pair], Mapping[str, Sequence]], list[float]]:
    chosen = registered()[name]

    def by_scores(outputs: Sequence[Any], pairs: list[Pair], columns: Mapping[str, Sequence]) -> list[float]:
        named = inspect.signature(chosen.function).parameters
        given = {key: values for key, values in columns.items() if key in named}
        scores = [score_of(each) for each in chosen.function(completions=list(outputs), **given)]
        return [_beats(scores[i], scores[j], scale) for i, j in pairs]

    return by_scores


def _beats(first: float | None, second: float | None, scale: float) -> float:
    if first is None or second is None or first == second:
        return TIE
    if not scale:
        return float(first > second)
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, (first - second) / scale))))
