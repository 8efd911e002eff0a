"""How far a rollout has come after each of its steps, by any reward of what is there so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.papers.segments import sentences
from mmrl.rewards.registry import resolve, reward, score_of, takes


def check_scorer(row: Mapping[str, Any], *, scorer: str = "accuracy", **_: Any) -> None:
    """RewardError for a scorer that is not there, or a row that it could never score."""
    if (check := resolve(scorer).check) is not None:
        check(row)


@reward(
    "step_progress",
    isolated=False,
    check=check_scorer,
    method="robo_dopamine",
    paper="Robo-Dopamine: General Process Reward Modeling for High-Precision Robotic Manipulation, arXiv 2512.23703",
    formula="Phi of a step = the scorer's reward of the answer up to its end",
    confidence="ours",
)
def step_progress(
    completions: Sequence[str], *, prompts: Any = None, scorer: str = "accuracy", marks: str = ".?!", shortest: int = 2,
    **columns: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """What the answer is worth as it ends; `columns: [segment, progress]` are its sentences and how far each brings it.

    scorer    a registered reward or file.py:function, called with every beginning of every answer: a progress model
    marks, shortest  where a step ends, as of reward `sentences`

    It costs as many scores as there are steps. Of clips and turns bring a reward of your own that returns `progress`,
    or an environment that fills it.
    """
    function = resolve(scorer).function
    cuts = [each["segment"] for each in sentences(completions, marks=marks, shortest=shortest)]
    at = [(row, end) for row, spans in enumerate(cuts) for _, end, _ in spans]
    given = columns if prompts is None else {**columns, "prompts": prompts}
    given = {k: [values[row] for row, _ in at] for k, values in given.items() if takes(function, k)}
    said = list(function(completions=[completions[row][:end] for row, end in at], **given)) if at else []
    if len(said) != len(at):
        raise RewardError(f"step_progress: scorer {scorer!r} gave {len(said)} scores for {len(at)} steps")
    values = iter(_value(scorer, each) for each in said)
    made: list[dict[str, Any]] = []
    for spans in cuts:
        reached = [[begin, end, next(values)] for begin, end, _ in spans]
        made.append({"score": reached[-1][2] if reached else 0.0, "segment": spans, "progress": reached})
    return made


def _value(scorer: str, score: Any) -> float:
    value = score_of(score)
    if value is None or not math.isfinite(value):
        raise RewardError(f"step_progress: scorer {scorer!r} said {score!r:.60} of a beginning; expected a number")
    return value
