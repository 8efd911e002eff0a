"""Where an answer falls into parts: makers of the column `segment`, worth nothing themselves.

rewards: [{name: accuracy}, {name: sentences, weight: 0, columns: [segment]}]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.registry import reward

Span = list[int]
"""[start, end, number of the part] in characters of an answer."""


def cut(text: str, ends: Sequence[int]) -> list[Span]:
    """Spans that cover `text` without a gap, cut at `ends`.

    >>> cut("ab cd", [3])
    [[0, 3, 0], [3, 5, 1]]
    """
    places = sorted({0, len(text), *(end for end in ends if 0 < end < len(text))})
    return [[a, b, number] for number, (a, b) in enumerate(pairwise(places))]


def sentence_ends(text: str, marks: str) -> list[int]:
    """Where a sentence is over: behind marks and the space after them. A mark inside a word or number ends nothing."""
    any_mark = re.escape(marks)
    return [found.end() for found in re.finditer(rf"(?:[{any_mark}]+[\"')\]]*)(?:\s+|$)|\n\s*", text)]


@reward(
    "sentences",
    isolated=False,
    method="sspo",
    paper="SSPO: Subsentence-level Policy Optimization, arXiv 2511.04256",
    formula="segment = the number of the sentence",
    confidence="partly",
)
def sentences(completions: Sequence[str], *, marks: str = ".?!", shortest: int = 2) -> list[dict[str, Any]]:
    """No number: with `columns: [segment]`, which sentence each token is part of. `marks: ".?!,;:"` cuts finer.

    marks     characters that end a part where space or the end of the answer follows; a line break always does
    shortest  a part of fewer words joins the one before
    """
    if not marks or shortest < 1:
        raise RewardError(f"sentences: marks={marks!r}, shortest={shortest}; expected characters, and 1 word or more")
    made = []
    for text in completions:
        ends: list[int] = []
        for end in sentence_ends(text, marks):
            if len(text[ends[-1] if ends else 0 : end].split()) >= shortest:
                ends.append(end)
        if ends and len(text[ends[-1] :].split()) < shortest:
            ends.pop()
        made.append({"segment": cut(text, ends)})
    return made
