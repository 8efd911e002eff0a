"""Where to point: at one thing, at every thing, and points that a segmenter is prompted with.

A true place is a box (a point in it is right), an outline of three points or more (`{"polygon": [[x, y], ...]}`), or a
point: then `within` says how near is near enough, in the units of the answer; at that distance the score is 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.boxes import Box, boxes, from_value
from mmrl.rewards.grounding import iou
from mmrl.rewards.matching import is_wall, shared_of_larger
from mmrl.rewards.points import Point, distance, inside, points, points_in, the_point, true_points
from mmrl.rewards.tasks import UNREAD, Verdict, kind

Place = Point | Box | list[Point]
OUTLINES = ("polygon", "outline", "mask", "segmentation")
_TAGGED = re.compile(r"<box>(.*?)</box>\s*[,;]?\s*<point>(.*?)</point>", re.DOTALL | re.IGNORECASE)
_TOLD = re.compile(
    r"\bb?box\w*\s*[:=]?\s*([\[(][^\])]*[\])])[\s,;]*(?:and )?\bpoint\w*\s*[:=]?\s*([\[(][^\])]*[\])])", re.IGNORECASE
)
"""`Box: [0, 0, 9, 9], point: [5, 5]`"""
_BRACKETS = re.compile(r"\[+[^\[\]()]{1,80}\]+")
OBJECTS = ("objects", "predictions", "detections", "results", "answer", "instances", "segmentation")
NEAR, NEAR_EDGE, NEAR_POINT = 0.5, 10.0, 30.0
"""VisionReasoner (arXiv 2505.12081): IoU above .5, edges within 10 and points within 30 pixels of the resized image."""


def place(value: Any) -> Place:
    """One true place; RewardError for what is none."""
    if isinstance(value, Mapping) and (name := next((n for n in OUTLINES if n in value), None)):
        outline = true_points(value[name])
        if len(outline) < 3:
            answers.refuse(value, "is no outline", "three points or more")
        return outline
    found = from_value(value) if isinstance(value, dict | list | tuple) else boxes(answers.truth(value))
    if found:
        if len(found) > 1 or found[0][2] <= found[0][0] or found[0][3] <= found[0][1]:
            answers.refuse(value, "is not one place", "[x1, y1, x2, y2] with an area, or one point")
        return found[0]
    here = true_points(value)
    if len(here) > 1:
        answers.refuse(value, "holds several points", "one, or the task `points`")
    return here[0]


def places(solution: Any) -> list[Place]:
    """A list of true places."""
    if isinstance(solution, str):
        value = answers.json_value(answers.truth(solution))
        solution = value if value is not None else [solution]
    if isinstance(solution, Mapping) and not any(n in solution for n in OUTLINES):
        solution = next((solution[k] for k in ("points", "boxes", "objects", "bboxes") if k in solution), [solution])
    alone = isinstance(solution, Mapping) or all(isinstance(each, int | float) for each in solution or ())
    listed = [solution] if alone else solution
    if not listed:
        answers.refuse(solution, "names no place", "a list of [x, y] or [x1, y1, x2, y2]")
    return [place(each) for each in listed]


def at(point: Point, right: Place, within: float) -> float:
    """1 in a box or outline; beside a point it falls from 1 to 0 over the distance `within`."""
    if isinstance(right, list):
        return float(inside(point, right))
    if len(right) == 4:
        return float(right[0] <= point[0] <= right[2] and right[1] <= point[1] <= right[3])
    return max(0.0, 1 - distance(point, right) / within)


@kind(
    "point",
    read=place,
    valid=lambda text: the_point(text) is not None,
    answer='one point: `(x, y)`, `[x, y]`, `<point>x y</point>`, `{"point_2d": [x, y]}`, `x=1, y=2`; a box counts as '
    "its centre",
    truth='a box in which it should lie, `{"polygon": [[x, y], ...]}`, or a point `[x, y]`',
    aliases=("pointing", "gui_grounding", "screenspot"),
)
def point(answer: str, right: Place, *, within: float = NEAR_POINT) -> Verdict:
    """One point: 1 in the true box or outline; beside a true point 1 - distance / `within`, at least 0."""
    found = the_point(answer)
    return UNREAD if found is None else Verdict(at(found, right, within))


@kind(
    "points",
    read=places,
    valid=lambda text: bool(points(text)),
    answer="all points, each as for `point`; more than 8, and more than four for each true one, are a wall and wrong",
    truth="a list of what `point` takes",
    aliases=("multi_point", "point_all", "keypoints", "point_counting"),
)
def all_points(answer: str, right: list[Place], *, within: float = NEAR_POINT) -> Verdict:
    """All points, matched one to one: worth of the pairs over the larger count, so that gaps and extras cost alike."""
    found = list(dict.fromkeys(points(answer)))
    if not found:
        return UNREAD
    score = shared_of_larger(found, right, lambda f, r: at(f, r, within))
    return Verdict(score, True, {"count": float(len(found) == len(right))})


def true_objects(solution: Any) -> list[dict[str, Any]]:
    """`[{"bbox_2d": [...], "point_2d": [x, y]}, ...]`; RewardError for anything else."""
    listed = answers.records(answers.json_value(solution) if isinstance(solution, str) else solution, OBJECTS)
    if not listed or not all(isinstance(each, Mapping) for each in listed):
        answers.refuse(solution, "is no list of objects", '[{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}]')
    found = [prompt_of(each) for each in listed]
    for each in found:
        box = each["box"]
        if box is None or box[2] <= box[0] or box[3] <= box[1]:
            answers.refuse(solution, "has an object without a box", '"bbox_2d": [x1, y1, x2, y2] in each')
    return found


def prompt_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """The box and the point of one object; None where it has not exactly one."""
    found = from_value({k: v for k, v in value.items() if "point" not in str(k).lower()})
    told = {k: v for k, v in value.items() if "point" in str(k).lower()}
    numbered = "points_1" in told and "points_2" in told  # two points of one object: Seg-Zero
    spots = points_in(told["points_1"] if numbered else told)
    return {"box": found[0] if len(found) == 1 else None, "point": spots[0] if len(spots) == 1 else None}


def _only(found: list[Any]) -> Any:
    return found[0] if len(found) == 1 else None


def prompts_in(answer: str) -> list[dict[str, Any]]:
    """The objects of an answer, as JSON or in tags, `<box>[...]</box><point>[...]</point>`."""
    if tagged := _TAGGED.findall(answer):
        return [made for b, p in tagged if (made := {"box": _only(boxes(b)), "point": _only(points(f"({p})"))})["box"]]
    value = answers.json_value(answer)
    if (both := _side_by_side(value)) is not None:
        return both
    if isinstance(value, list) and (alone := _only(from_value(value))) and len(points(answer)) <= 1:
        return [{"box": alone, "point": _only(points(_BRACKETS.sub("", answer, count=1)))}]
    if value is None or not answers.records(value):
        return []
    listed = answers.records(value, OBJECTS)
    if all(isinstance(each, Mapping) for each in listed):
        return [made for each in listed if (made := prompt_of(each))["box"] is not None]
    told = [(_only(boxes(m[1])), _only(points(m[2]))) for m in _TOLD.finditer(answer)]
    return [{"box": box, "point": spot} for box, spot in told if box is not None]


def _side_by_side(value: Any) -> list[dict[str, Any]] | None:
    """Of `{"bboxes": [...], "points": [...]}`, as many of the one as of the other; None for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("points"), list):
        return None
    held = from_value({k: v for k, v in value.items() if k != "points"})
    spots = points_in(value["points"])
    if not held or len(held) != len(spots):
        return None
    return [{"box": box, "point": spot} for box, spot in zip(held, spots, strict=True)]


@kind(
    "segmentation",
    read=true_objects,
    valid=lambda text: bool(prompts_in(text)),
    answer='JSON, for each object `{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}`: prompts of a segmenter',
    truth="the same",
    aliases=("segmentation_points", "referring_segmentation", "reasoning_segmentation", "refseg"),
)
def segmentation(answer: str, right: list[dict], *, scale: float = 1.0) -> Verdict:
    """Prompts for a segmenter (VisionReasoner): a third each for IoU > .5, edges and point near; over the larger count.

    scale  how many units of the answer one pixel of the resized image is: the distances of 10 and 30 are pixels there
    """
    found = prompts_in(answer)
    if not found:
        return UNREAD
    if is_wall(len(found), len(right)):
        return Verdict(0.0, True, dict.fromkeys(("iou", "edges", "points"), 0.0))
    tests = {"iou": boxes_agree, "edges": edges_agree, "points": points_agree}

    def pair(f: dict, r: dict) -> float:
        return sum(test(f, r, scale) for test in tests.values()) / len(tests)

    parts = {name: shared_of_larger(found, right, partial(test, scale=scale)) for name, test in tests.items()}
    return Verdict(shared_of_larger(found, right, pair), True, parts)


def boxes_agree(found: dict, right: dict, scale: float) -> float:
    return float(iou(found["box"], right["box"]) > NEAR)


def edges_agree(found: dict, right: dict, scale: float) -> float:
    off = sum(abs(a - b) for a, b in zip(found["box"], right["box"], strict=True)) / 4
    return float(off < NEAR_EDGE * scale)


def points_agree(found: dict, right: dict, scale: float) -> float:
    """The point lies in its own box and near the true point, or, without one, in the true box."""
    spot = found["point"]
    if spot is None or not at(spot, found["box"], 1.0):
        return 0.0
    true = right["point"]
    return at(spot, right["box"], 1.0) if true is None else float(distance(spot, true) < NEAR_POINT * scale)
