"""DynFrame: the decision which frames to fetch, and the answer, each with a reward of its own.

A response names a span and a rate, `<span>2-8</span><fps>2</fps>`, is shown those frames, and answers. The two parts
are the components `retrieval` and `answer` of credit `dynframe_sd_grpo`. The temporal scales are the authors'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.accuracy import check_row, judge
from mmrl.rewards.intervals import Interval, interval
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import find_task, task_name
from mmrl.rewards.temporal import overlap, true_interval

SCALES = ((5.0, 0.6, 0.95), (15.0, 0.5, 0.9), (30.0, 0.4, 0.85), (float("inf"), 0.3, 0.8))
"""(true seconds below which it holds, IoU that is worth 0, IoU that is worth 1)."""
_SPAN = re.compile(r"<span>(.*?)</span>", re.DOTALL)
_CALL = re.compile(r"<tool>\s*(\{.*?\})\s*</tool>", re.DOTALL)
_RATE = re.compile(r"<fps>\s*(\d+(?:\.\d+)?)\s*</fps>")


def scaled(found: Interval, right: Interval) -> float:
    """IoU on the scale of the truth's length: short moments must be met closely."""
    low, high = next((a, b) for most, a, b in SCALES if right[1] - right[0] < most)
    return min(1.0, max(0.0, (overlap(found, right) - low) / (high - low)))


def form(text: str) -> float:
    """.4 for a thought first, .4 for an answer pair, .2 for as many spans as rates, all closed."""
    thought = text.lstrip().startswith("<think>") and "</think>" in text
    answered = text.count("<answer>") == text.count("</answer>") > 0
    paired = [text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in ("span", "fps")]
    fetched = all(paired) and text.count("<span>") == text.count("<fps>") > 0
    return 0.4 * thought + 0.4 * answered + 0.2 * fetched


def fetched(text: str) -> tuple[Interval | None, float | None] | None:
    """The first span and rate that a response asks for, as tags or as a call of environment `frames`, which has no
    rate; None for a response that asks for nothing."""
    said, given = _SPAN.search(text), _RATE.search(text)
    if said and given:
        return interval(said[1]), float(given[1])
    for call in _CALL.findall(text):
        try:
            part = json.loads(call)
            return (float(part["start"]), float(part["end"])), None
        except (ValueError, KeyError, TypeError):
            continue
    return None


def retrieval(text: str, span: Any, rate: Any, fastest: float) -> dict[str, float]:
    """How well the first span and rate meet the true ones: tIoU + max(0, 1 - |d| / fastest); 0 without both."""
    asked = fetched(text)
    if asked is None:
        return {"retrieval": 0.0, "fps": 0.0}
    found, pace_of = asked
    near = overlap(found, true_interval(span)) if found and found[0] < found[1] and span is not None else 0.0
    pace = max(0.0, 1 - abs(pace_of - float(rate)) / fastest) if rate is not None and pace_of is not None else 0.0
    return {"retrieval": near + pace, "fps": pace}


def check_dynframe(row: Mapping[str, Any], **_: Any) -> None:
    """RewardError for a truth that cannot be judged, or a `span` that is no interval."""
    check_row({**row, "task": task_name(row)})
    if row.get("span") is not None:
        try:
            true_interval(row["span"])
        except RewardError as error:
            raise RewardError(str(error), "span") from None


@reward(
    "dynframe",
    success=True,
    check=check_dynframe,
    method="dynframe_sd_grpo",
    paper="DynFrame, 2026; code zhangguanghao523/DynFrame",
    formula="retrieval = tIoU(span) + max(0, 1 - |fps - true| / fastest); answer = accuracy + format",
    confidence="partly",
)
def dynframe(
    completions, solution, task, options=None, span=None, fps=None, *, fastest: float = 4.0
) -> list[dict[str, float]]:
    """Which frames it fetched (columns `span`, `fps`) and what it answered: components for credit `dynframe_sd_grpo`.

    A call as of environment `frames` is a span without a rate; there a reward sees the last turn alone, and the
    environment's column `fetched` says how well the span was met. Name it so that the credit finds them: credit: {name:
    dynframe_sd_grpo, retrieval: dynframe/retrieval, answer: dynframe/answer}. A `temporal` truth is judged by the
    authors' scale for its length.
    """
    empty = [None] * len(completions)
    scores = []
    rows = zip(completions, solution, task, options or empty, span or empty, fps or empty, strict=True)
    for completion, truth, name, choices, true_span, rate in rows:
        if find_task(name) is find_task("temporal"):
            found, right = interval(answers.extract(completion)), true_interval(truth)
            accuracy = scaled(found, right) if found else 0.0
        else:
            accuracy = judge(completion, truth, name, options=choices)
        parts = retrieval(completion, true_span, rate, fastest)
        answer = accuracy + form(completion)
        told = {"success": float(accuracy >= 0.5), "accuracy": accuracy, "answer": answer}
        scores.append({"score": answer + parts["retrieval"], **told, **parts})
    return scores
