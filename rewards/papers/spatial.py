"""Composite rewards of spatial reasoning: MLLM-4D's ST-reward and PanoEnv's five geometry-aware rules.

Both were read in the authors' code: GVCLab/MLLM-4D `qwen-vl-rft/ST-reward.py`; 7zk1014/PanoEnv `qwen_module.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.distances import similarity
from mmrl.rewards.registry import checks, reward

LONGEST = 50_000
LONG_THOUGHT = 20  # characters of a thought, its tags included
_THOUGHT = re.compile(r"<thinking>.*?</thinking>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_CENTRE = r"{name} Center:\s*\[([^\]\[]*)\]"


def centres(text: str, name: str) -> list[list[float]] | None:
    """The points of all `Camera Center: [x, y, z]` lines; None where one holds something else."""
    found = []
    for inside in re.findall(_CENTRE.format(name=name), text):
        if "null" in inside.lower():
            continue
        try:
            found.append([float(each) for each in inside.split(",")])
        except ValueError:
            return None
    return found


def nearness(said: list[list[float]] | None, right: Sequence[Sequence[float]]) -> float:
    """exp(-mean distance) of points in order; 0 for another number of points. No points asked: 1 for none said."""
    true = [list(map(float, each)) for each in right if each is not None]
    if said is None or len(said) != len(true) or any(len(s) != len(t) for s, t in zip(said, true, strict=True)):
        return 0.0
    if not true:
        return 1.0
    off = sum(math.dist(s, t) for s, t in zip(said, true, strict=True)) / len(true)
    return math.exp(-off) if math.isfinite(off) else 0.0


def true_scene(solution: Any) -> Mapping[str, Any]:
    """`{"answer", "camera_center", "object_center"}`, or a list of one; RewardError for anything else."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, Mapping) or answers.is_missing(value.get("answer")):
        answers.refuse(solution, "is no answer with centres", '{"answer": "B", "camera_center": [[x, y, z], ...]}')
    return value


@reward(
    "mllm_4d",
    success=True,
    check=checks(true_scene),
    paper="MLLM-4D, 2026; code GVCLab/MLLM-4D, ST-reward.py",
    formula=".2 (.5 [tags] + .4 [both centre lines] + .1 [thought > 20]) + .6 [answer] + .1 camera + .1 object",
)
def mllm_4d(completions, solution) -> list[dict[str, float]]:
    """Answer, format, and how near the stated camera and object centres are: .6, .2, .1, .1 (MLLM-4D)."""
    scores = []
    for completion, scene in zip(completions, map(true_scene, solution), strict=True):
        text = completion[:LONGEST]
        thought, said = _THOUGHT.search(text), _ANSWER.findall(answers.outside_thought(text))
        lines = all(re.search(_CENTRE.format(name=name), text) for name in ("Object", "Camera"))
        long = bool(thought) and len(thought[0]) > LONG_THOUGHT
        answer = said[-1].strip() if said else ""
        parts = {
            "answer": float(bool(answer) and answer == str(scene["answer"]).strip()),
            "format": 0.5 * bool(thought and said) + 0.4 * lines + 0.1 * long,
            "camera": nearness(centres(text, "Camera"), scene.get("camera_center") or ()) if said else 0.0,
            "object": nearness(centres(text, "Object"), scene.get("object_center") or ()) if said else 0.0,
        }
        total = 0.6 * parts["answer"] + 0.2 * parts["format"] + 0.1 * parts["camera"] + 0.1 * parts["object"]
        scores.append({"score": total, "success": parts["answer"], **parts})
    return scores


# ------------------------------------------------------------------------------------------------------- PanoEnv
_PANO_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PANO_FORMAT = re.compile(r"<Reasoning>.*?</Reasoning>\s*<Answer>.*?</Answer>", re.DOTALL)
_ARTICLE = re.compile(r"\b(?:the|a|an)\b", re.IGNORECASE)
_SUBJECT_END = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|could|will|would|should|may|might|must|do|does|did|in|on|at|to|from|with|"
    r"by|for|of|near|behind|above|below|under|over|between|among|through|during|before|after|since|until)\b", re.I
)  # fmt: skip
UNITS = {
    "kilomet": 1000.0, "km": 1000.0, "centimet": 0.01, "cm": 0.01, "millimet": 0.001, "mm": 0.001, "met": 1.0, "m": 1.0,
    "feet": 0.3048, "foot": 0.3048, "ft": 0.3048, "inch": 0.0254, "in": 0.0254,
}  # fmt: skip
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*(kilomet|km|centimet|cm|millimet|mm|met|feet|foot|ft|inch|in\b|m\b)?")
_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
}  # fmt: skip
AXES = {
    "depth": {"front": "front forward ahead", "back": "back behind rear"},
    "side": {"left": "left leftward", "right": "right rightward"},
    "height": {"up": "above up upper over top higher", "down": "below down under lower beneath bottom"},
}
ALIKE = 0.75


def metres(text: str) -> float | None:
    """The first quantity of a text in metres; without a unit as it is."""
    match = _QUANTITY.search(text.lower())
    if match:
        return float(match[1]) * UNITS.get(match[2] or "m", 1.0)
    word = next((w for w in re.findall(r"[a-z]+", text.lower()) if w in _WORDS), None)
    return None if word is None else float(_WORDS[word])


def directions(text: str) -> dict[str, str]:
    """The first word of each axis, by its meaning."""
    found: dict[str, str] = {}
    for word in re.findall(r"[a-z]+", text.lower()):
        for axis, sides in AXES.items():
            side = next((name for name, names in sides.items() if word in names.split()), None)
            if side and axis not in found:
                found[axis] = side
    return found


def entity(text: str) -> str:
    """What a sentence of more than four words is about, without articles, spaces and signs."""
    text = text.strip()
    if len(text.split()) > 4 and (match := _SUBJECT_END.search(text)):
        text = text[: match.start()].strip() or text
    return re.sub(r"[^a-z0-9]", "", _ARTICLE.sub("", text).lower())


def pano_accuracy(said: str, right: str, method: str) -> float:
    """By the rule of the question's type; what is of no type is compared as text."""
    if method in ("yes_no", "true_false"):
        return float(said.strip().lower().rstrip(".") == right.strip().lower().rstrip("."))
    if method in ("mcq", "multiple_choice"):
        return float(bool(entity(said)) and entity(said) == entity(right))
    if method == "spatial":
        wanted, named = directions(right), directions(said)
        return sum(named.get(axis) == side for axis, side in wanted.items()) / len(wanted) if wanted else 0.0
    if method in ("distance", "counting"):
        given, true_value = metres(said), metres(right)
        if given is None or true_value is None:
            return 0.0
        if method == "counting":
            return float(abs(given - true_value) < 0.01)
        off = abs(given - true_value) / true_value if true_value else math.inf
        return 1.0 if off <= 0.10 + 1e-9 else 0.5 if off <= 0.20 + 1e-9 else 0.0
    a, b = (" ".join(_ARTICLE.sub("", text).lower().split()) for text in (said, right))
    return float(bool(a) and (a == b or similarity(a, b) > ALIKE))


@reward(
    "panoenv",
    success=True,
    check=checks(answers.truth),
    paper="PanoEnv, 2026; code 7zk1014/PanoEnv, qwen_module.py",
    formula=".9 accuracy by question type + .1 [<Reasoning> and <Answer>]",
)
def panoenv(completions, solution, accu_reward_method=None, question_type=None) -> list[dict[str, float]]:
    """Questions about a panorama: .9 accuracy by the column `accu_reward_method` or `question_type`, .1 format.

    yes_no, mcq (the thing named first), distance (10 % off: 1, 20 %: .5), spatial (share of the axes), counting, other
    """
    methods = accu_reward_method or question_type or ["other"] * len(completions)
    scores = []
    for completion, truth, method in zip(completions, solution, methods, strict=True):
        right, found = answers.truth(truth), _PANO_ANSWER.findall(answers.outside_thought(completion[:LONGEST]))
        accuracy = pano_accuracy(found[-1].strip(), right, str(method)) if found and found[-1].strip() else 0.0
        form = float(bool(found and found[-1].strip() and _PANO_FORMAT.search(completion[:LONGEST])))
        scores.append({"score": 0.9 * accuracy + 0.1 * form, "success": accuracy, "accuracy": accuracy, "format": form})
    return scores
