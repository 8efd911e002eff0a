"""Submodular RL: an output is worth what it adds to those of its group, so that the second of two alike adds nothing.

The group is taken as a set, greedily: first the output of the largest gain, then the one that adds most to it, and so
on; its gain is what it had when its turn came. The gains of a group add up to 1, what the whole group is worth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.registry import resolve, reward
from mmrl.rewards.wording import cosine, ngrams, words

KINDS = ("coverage", "facility")
ROUNDING = 1e-12


def greedy_gains(count: int, gain: Callable[[int], float], take: Callable[[int], None]) -> list[float]:
    """F(S + i) - F(S) of each of `count` members when its turn comes, over F of all; equals in the order they stand.

    gain, take  what a member adds to what was taken, F being monotone and submodular; and that it is taken now
    """
    left, gains = list(range(count)), [0.0] * count
    while left:
        found = {i: gain(i) for i in left}
        best = max(left, key=lambda i: (found[i], -i))
        gains[best] = found[best] if found[best] > ROUNDING else 0.0
        take(best)
        left.remove(best)
    total = sum(gains)
    return [each / total for each in gains] if total else gains


def coverage_gains(sets: Sequence[set[Any]]) -> list[float]:
    """F(S): how many different things the sets of S hold together.

    >>> coverage_gains([{1, 2}, {1, 2, 3}, {4}, {4}])
    [0.0, 0.75, 0.25, 0.0]
    """
    covered: set[Any] = set()
    return greedy_gains(len(sets), lambda i: float(len(sets[i] - covered)), lambda i: covered.update(sets[i]))


def facility_gains(likeness: Sequence[Sequence[float]]) -> list[float]:
    """F(S): sum over all members of the likeness, 0 or more, to the nearest one of S; `likeness` (G, G), symmetric."""
    nearest = [0.0] * len(likeness)

    def gain(i: int) -> float:
        return sum(max(like - near, 0.0) for like, near in zip(likeness[i], nearest, strict=True))

    def take(i: int) -> None:
        nearest[:] = [max(like, near) for like, near in zip(likeness[i], nearest, strict=True)]

    return greedy_gains(len(likeness), gain, take)


def _likeness(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """Cosines of all pairs; a vector of zeros is like nothing, not even itself."""
    sizes = [math.sqrt(sum(v * v for v in each)) for each in vectors]
    return [
        [sum(x * y for x, y in zip(a, b, strict=True)) / (s * t) if s and t else 0.0
         for b, t in zip(vectors, sizes, strict=True)]
        for a, s in zip(vectors, sizes, strict=True)
    ]  # fmt: skip


def _embedded(name: str, outputs: Sequence[Any]) -> list[list[float]]:
    vectors = [[float(v) for v in each] for each in resolve(name).function(list(outputs))]
    if len(vectors) != len(outputs) or len({len(each) for each in vectors}) > 1:
        raise RewardError(
            f"submodular_rl: embed {name!r} gave {len(vectors)} vectors for {len(outputs)} outputs, of lengths "
            f"{sorted({len(each) for each in vectors})}; expected one each, of one length"
        )
    return vectors


def _gains(outputs: Sequence[Any], kind: str, n: int, embed: str) -> list[float]:
    """Of one group."""
    if embed:
        return facility_gains(_likeness(_embedded(embed, outputs)))
    other = next((each for each in outputs if not isinstance(each, str)), None)
    if other is not None:
        raise RewardError(
            f"submodular_rl: without `embed` it reads texts, got {type(other).__name__}; name options: {{kind: "
            "facility, embed: file.py:function}"
        )
    if kind == "coverage":
        return coverage_gains([set(ngrams(words(text), n)) for text in outputs])
    counts = [Counter(ngrams(words(text), n)) for text in outputs]
    return facility_gains([[cosine(a, b) for b in counts] for a in counts])


@reward(
    "submodular_rl",
    isolated=False,
    paper="Submodular Reinforcement Learning, arXiv 2307.13372",
    formula="r_i = (F(S_i + i) - F(S_i)) / F(group), S_i those taken before i, greedily; F a coverage of n-grams, or "
    " facility location: mean_j max_(i in S) sim(i, j)",
    confidence="partly",
)
def submodular_rl(
    completions: Sequence[Any], prompt_id: Sequence[Any], *, kind: str = "coverage", n: int = 2, embed: str = ""
) -> list[float]:
    """What each output adds to those of its group, as a share of all; of outputs that are alike the first has it all.

    kind   coverage: different runs of `n` words; facility: how near the group's outputs are to one that was taken, by
           the cosine of those runs, or of `embed`
    n      words of a run
    embed  of pictures, clips or your own likeness: file.py:function, outputs -> one vector each

    Noise adds most: let it count for right outputs alone, with weight 0 and `shaping: [{name: dsdr, diversity:
    submodular_rl}]`, as the recipe has it. A single output adds everything. Source: the paper's marginal gains are
    those of states along one trajectory (manish-pra/non-additive-RL, main.py); here the set is the group.
    """
    if kind not in KINDS:
        raise RewardError(f"submodular_rl: {unknown('kind', kind, KINDS)}")
    if n < 1 or (embed and kind != "facility"):
        raise RewardError(
            f"submodular_rl: kind={kind!r}, n={n}, embed={embed!r}; n is 1 or more, and `embed` goes with kind facility"
        )
    groups: dict[Any, list[int]] = {}
    for place, name in enumerate(prompt_id):
        groups.setdefault(name, []).append(place)
    scores = [0.0] * len(completions)
    for rows in groups.values():
        gains = _gains([completions[row] for row in rows], kind, n, embed)
        for row, gain in zip(rows, gains, strict=True):
            scores[row] = gain
    return scores
