"""Edit distance of texts, word lists and anything else that can be compared, in pure Python."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence

LONGEST = 20_000  # characters or words compared: a long page
_SPACES = re.compile(r"\s+")
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W\d_]+)?")
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the and or but nor so of in on at to from by for with as is are was were be been being it its this "
        "that these those there here he she they them his her their i you we me my your our not no do does did "
        "has have had which who whom what when where why how than then also very can could will would may might "
        "should must s t",
    )
)


def edits(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions from one to the other.

    A row of the table is two integers, the places where it rises and falls by one (Myers 1999, Hyyro 2003), so that two
    texts of thousands of characters take milliseconds.
    """
    if not first or not second:
        return len(first) or len(second)
    places: dict[Hashable, int] = {}
    for i, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << i
    every, last, distance = (1 << len(first)) - 1, 1 << (len(first) - 1), len(first)
    rises, falls = every, 0
    for item in second:
        same = places.get(item, 0)
        across = (((same & rises) + rises) ^ rises) | same
        down = same | falls
        right, left = falls | (~(across | rises) & every), rises & across
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & every, left << 1 & every
        rises, falls = left | (~(down | right) & every), right & down
    return distance


def similarity(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """1 - edits / length of the longer; 1 for two empty ones."""
    longest = max(len(first), len(second))
    return 1 - edits(first[:LONGEST], second[:LONGEST]) / min(longest, LONGEST) if longest else 1.0


def tidied(text: str, *, fold: bool = True) -> str:
    """For comparing characters: one form of each, white space collapsed, case folded unless told otherwise."""
    text = _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip()
    return text.casefold() if fold else text


def words(text: str) -> list[str]:
    """Words and numbers, case folded; what is written without spaces (Chinese, Japanese) counts by character."""
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        found += list(word) if any("\u3040" <= c <= "\u9fff" for c in word) else [word]
    return found


def shares_content(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two word lists share a word that means something: "the" and "is" are in every text."""
    return any(word not in FUNCTION_WORDS for word in set(first) & set(second))


def f1(shared: float, first: float, second: float) -> float:
    """2 shared / (first + second); 0 for nothing in common."""
    return 2 * shared / (first + second) if shared else 0.0


def overlap_f1(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """F1 of two multisets."""
    return f1(sum((Counter(first) & Counter(second)).values()), len(first), len(second))


def longest_common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        above = 0
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], above + 1 if a == b else max(row[j], row[j - 1])
    return row[-1]
