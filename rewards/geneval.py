"""GenEval: whether a detector finds in a picture what its prompt's metadata asks for.

Ghosh et al., GenEval, arXiv 2310.11513; evaluation/evaluate_images.py of djghosh13/geneval. The columns are its own:
`include` and `exclude` hold {"class", "count", "color"?, "position"?: [relation, index]}. All of `include` must
hold, and none of `exclude`.

No detector ships with mmrl: name yours, `detector: path/to/file.py:function`. It is called as
`detect(images, classes)`, PIL images and for each the classes asked for, and returns for each image a list of
{"class", "box": [x1, y1, x2, y2], "score"}, and "color" where a row asks for colours.

As there: objects below `threshold` (`counting_threshold` where `tag` is counting) do not count, at most `most` of a
class are kept, and colour and position are asked of the `count` most certain ones. What differs: colours come from the
detector (there: CLIP on the cut-out), and no overlapping boxes are removed (there too by default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards.registry import resolve, reward

RELATIONS = ("left of", "right of", "above", "below")
SLACK = 0.1  # share of the two objects' extents that an offset must exceed, POSITION_THRESHOLD there
NEEDED = (
    "reward 'geneval' needs a detector and has none: options: {detector: path/to/file.py:function}; it gets (images, "
    "classes) and returns a list of {'class', 'box', 'score'} for each image"
)

Box = Sequence[float]
Found = Mapping[str, Any]


def relations(a: Box, b: Box) -> set[str]:
    """Where box `a` lies from box `b`: up to two of RELATIONS, none where they share a place.

    The offset of the centres, less a tenth of both extents, over its length before that; beyond .5 on an axis counts.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    extent = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    left = [math.copysign(max(abs(o) - SLACK * e, 0), o) for o, e in zip(offset, extent, strict=True)]
    if max(map(abs, left)) < 1e-3:
        return set()
    x, y = (value / math.hypot(*offset) for value in left)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, holds in named.items() if holds}


def clauses(found: Sequence[Found], include: Sequence[Mapping], exclude: Sequence[Mapping] | None) -> list[bool]:
    """Which clauses of the metadata hold, `include` first. `found`: what counts, the most certain first."""
    groups: list[list[Found] | None] = []
    for clause in include:
        same = [f for f in found if f["class"] == clause["class"]][: clause["count"]]
        holds = len(same) == clause["count"]
        if holds and clause.get("color") is not None:
            holds = all(_color(f) == clause["color"] for f in same)
        if holds and clause.get("position") is not None:
            relation, index = clause["position"]
            target = groups[int(index)]
            holds = target is not None and all(relation in relations(f["box"], t["box"]) for f in same for t in target)
        groups.append(same if holds else None)
    out = [sum(f["class"] == c["class"] for f in found) < c["count"] for c in exclude or ()]
    return [group is not None for group in groups] + out


def _color(found: Found) -> Any:
    if "color" not in found:
        raise ValueError(f"the prompt asks for the colour of a {found['class']}, and the detector gives no 'color'")
    return found["color"]


def counted(found: Sequence[Found], threshold: float, most: int) -> list[Found]:
    """What is certain enough, at most `most` of a class, the most certain first."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda f: -f["score"]):
        if each["score"] > threshold and sum(k["class"] == each["class"] for k in kept) < most:
            kept.append(each)
    return kept


def check_row(row: Mapping[str, Any], *, detector: str | None = None, **options: Any) -> None:
    """Raise RewardError where no picture could be judged: no detector, or clauses that say nothing."""
    if detector is None:
        raise RewardError(NEEDED)
    for column in ("include", "exclude"):
        for place, clause in enumerate(row.get(column) or ()):
            _check_clause(column, place, clause)
    if not row.get("include"):
        raise RewardError(f"include is {row.get('include')!r}; expected a list of {{'class', 'count'}}", "include")


def _check_clause(column: str, place: int, clause: Any) -> None:
    good = isinstance(clause, Mapping) and isinstance(clause.get("class"), str) and isinstance(clause.get("count"), int)
    if not good or clause["count"] < 1:
        raise RewardError(f"{column}, entry {place}: expected {{'class', 'count'}}, got {clause!r}", column)
    if clause.get("position") is None:
        return
    relation, index = clause["position"]
    if relation not in RELATIONS:
        raise RewardError(f"{column}, entry {place}: {unknown('position', relation, RELATIONS)}", column)
    if not 0 <= int(index) < place:
        raise RewardError(f"{column}, entry {place}: position points to entry {index}; expected one before it", column)


@lru_cache(maxsize=4)
def _detector(name: str):
    return resolve(name).function


@reward("geneval", success=True, isolated=False, check=check_row)
def geneval(
    completions, include, exclude=None, tag=None, *, detector: str | None = None, graded: bool = False,
    threshold: float = 0.3, counting_threshold: float = 0.9, most: int = 16,
) -> list[dict[str, float]]:  # fmt: skip
    """1 if your `detector` finds all that `include` asks for and none of `exclude`; `graded`: the share that holds."""
    if detector is None:
        raise RewardError(NEEDED)
    out, tags = exclude or [None] * len(completions), tag or [None] * len(completions)
    asked = [list(dict.fromkeys(c["class"] for c in [*i, *(e or ())])) for i, e in zip(include, out, strict=True)]
    answers = _detector(detector)(list(completions), asked)
    if len(answers) != len(completions):
        raise ValueError(f"the detector {detector} gave {len(answers)} answers for {len(completions)} images")
    scores = []
    for found, wanted, unwanted, kind in zip(answers, include, out, tags, strict=True):
        least = counting_threshold if kind == "counting" else threshold
        held = clauses(counted(found, least, most), wanted, unwanted)
        scores.append({"score": sum(held) / len(held) if graded else float(all(held)), "success": float(all(held))})
    return scores
