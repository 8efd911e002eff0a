"""Answers that are lists: which items are right, in what order, and which item each token is part of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.papers.segments import cut
from mmrl.rewards.registry import reward

_MARK = re.compile(r"^\s*(?:[-*\u2022]|\(?\d+\s*[.):])\s+")
_TAG = re.compile(r"</?(?:answer|candidates|ranking)>", re.IGNORECASE)
_SET_ENDS = re.compile(r"</candidates>\s*", re.IGNORECASE)
Item = tuple[str, int]
"""What an item says, folded for comparing, and where it ends."""


def items_of(text: str, begin: int = 0) -> list[Item]:
    """The items of a list, one a line; of a single line, between commas or semicolons.

    >>> items_of("1. Cat\\n2. dog")
    [('cat', 7), ('dog', 13)]
    """
    rest = text[begin:]
    lines = [line for line in rest.splitlines() if fold(line)]
    between = r"\n" if len(lines) > 1 else r"[,;\n]"
    found, place = [], begin
    for end in [*(m.end() + begin for m in re.finditer(between, rest)), len(text)]:
        if item := fold(text[place:end]):
            found.append((item, end))
        elif found and place < end:
            found[-1] = found[-1][0], end
        place = end
    return found


def fold(item: str) -> str:
    """An item without number, bullet, tags, case and closing marks."""
    return " ".join(_MARK.sub("", _TAG.sub(" ", item)).casefold().split()).strip(" .,;\"'")


def wanted(solution: Any) -> list[str]:
    """The right items of a `solution`: a list, a JSON list, or text with one a line or between commas."""
    if isinstance(solution, str) and isinstance(read := answers.json_value(solution), list):
        solution = read
    if answers.is_missing(solution):
        answers.refuse(solution, "is blank", "the right items")
    if isinstance(solution, Mapping):
        answers.refuse(solution, "is a mapping", "a list of the right items")
    named = [fold(str(each)) for each in solution] if isinstance(solution, list | tuple) else None
    right = named if named is not None else [item for item, _ in items_of(str(solution))]
    if not any(right):
        answers.refuse(solution, "names no item", "a list of the right items")
    return list(dict.fromkeys(item for item in right if item))


def hits_of(items: Sequence[str], right: Sequence[str]) -> list[float]:
    """1 for each item that is right and was not named before."""
    return [float(item in right and item not in items[:k]) for k, item in enumerate(items)]


def ndcg(hits: Sequence[float], count: int) -> float:
    """Discounted gain of the hits over that of `count` right items in the first places."""
    gain = sum(hit / math.log2(k + 2) for k, hit in enumerate(hits))
    return gain / sum(1 / math.log2(k + 2) for k in range(count)) if count else 0.0


def check_items(row: Mapping[str, Any], **_: Any) -> None:
    wanted(row.get("solution"))


@reward(
    "ranked_items",
    isolated=False,
    check=check_items,
    method="rank_grpo",
    paper="Rank-GRPO, 2025",
    formula="NDCG of the items; segment = the item, action_reward = [it is right and new] on its last token",
    confidence="verified",
)
def ranked_items(completions: Sequence[str], solution: Sequence[Any], *, items: int | None = None) -> list[dict]:
    """NDCG of a list against the right items; `columns: [segment, action_reward]` are its items and their hits.

    items  only so many, from the front, can hit; as many right ones are the best there is. None: no limit

    An item is a line, or what stands between commas where there is one line. `solution` is a list, or such text.
    Source: yaochenzhu/Rank-GRPO, reward_funcs.py, which looks titles up in a catalog; here items are compared by
    their words.
    """
    made = []
    for text, truth in zip(completions, solution, strict=True):
        found, right = items_of(text), wanted(truth)
        hits = hits_of([item for item, _ in found], right)
        hits = [hit if items is None or k < items else 0.0 for k, hit in enumerate(hits)]
        spans = cut(text, [end for _, end in found[:-1]])
        rewards = [[a, b, hit] for (a, b, _), hit in zip(spans, hits, strict=False)]
        best = len(right) if items is None else min(items, len(right))
        made.append({"score": ndcg(hits, best), "segment": spans, "action_reward": rewards})
    return made


@reward(
    "set_then_rank",
    isolated=False,
    check=check_items,
    method="f_grpo",
    paper="F-GRPO, arXiv 2605.12995",
    formula="coverage = share of the right items in <candidates>, in any order; ranking = NDCG of what follows, of "
    "candidates alone; segment = 0 up to </candidates>, then 1",
    confidence="reconstructed",
)
def set_then_rank(completions: Sequence[str], solution: Sequence[Any], *, most: int = 20) -> list[dict]:
    """The mean of its parts `coverage` and `ranking`; `columns: [segment]` says which phase a token is part of.

    most  candidates that count, from the front: naming everything covers nothing more

    An answer is <candidates>a, b, c</candidates> and then the ranked list. One that never closes its candidates is all
    of the first phase, and ranks nothing. Source: abstract; tags and the measure of ranking are ours.
    """
    made = []
    for text, truth in zip(completions, solution, strict=True):
        end, right = _SET_ENDS.search(text), wanted(truth)
        border = end.end() if end else len(text)
        candidates = list(dict.fromkeys(item for item, _ in items_of(text[:border])))[:most]
        ranked = [item for item, _ in items_of(text, border)] if end else []
        coverage = sum(item in candidates for item in right) / len(right)
        ranking = ndcg(hits_of(ranked, [item for item in right if item in candidates]), len(right))
        made.append({"score": (coverage + ranking) / 2, "coverage": coverage, "ranking": ranking,
                     "segment": cut(text, [border])})  # fmt: skip
    return made
