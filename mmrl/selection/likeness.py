"""How alike two texts are, without a model: the cosine of their hashed words and word pairs."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

PLACES = 2**20
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=65536)
def features(text: str) -> dict[int, float]:
    """A sparse vector of length 1: words and pairs of neighbours, case aside; empty for a text without words."""
    words = _WORD.findall(text.lower())
    counts = Counter(map(_place, [*words, *map(" ".join, pairwise(words))]))
    size = math.sqrt(sum(n * n for n in counts.values()))
    return {place: n / size for place, n in counts.items()}


def _place(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % PLACES


def likeness(first: str, second: str) -> float:
    """0 for nothing in common, 1 for the same words in the same order or one without words beside itself."""
    if first == second:
        return 1.0
    a, b = features(first), features(second)
    a, b = (a, b) if len(a) <= len(b) else (b, a)
    return sum(value * b.get(place, 0.0) for place, value in a.items())


def nearest(text: str, others: Iterable[str], count: int) -> list[int]:
    """Places of the `count` texts most like `text`, the most alike first, equal ones in order."""
    values = [(-likeness(text, other), place) for place, other in enumerate(others)]
    return [place for _, place in sorted(values)[:count]]
