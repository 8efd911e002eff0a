"""DINO-R1's query groups (arXiv 2505.24025), for a model that writes its boxes: each has its own match with the truth.

The paper's queries are those of a detector without a language model; here a query is a box in the text.
"""

from __future__ import annotations

import re
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.boxes import boxes, true_boxes
from mmrl.rewards.grounding import check_boxes, iou, where
from mmrl.rewards.matching import is_wall
from mmrl.rewards.registry import reward

_N = r"-?\d+(?:\.\d+)?"
_PAIR = rf"\s*{_N}\s*,\s*{_N}\s*"
_QUERY = re.compile(rf"\[{_PAIR},{_PAIR}\]|\({_PAIR}\)\s*,\s*\({_PAIR}\)")


def queries(completion: str, right: list[tuple[float, float, float, float]]) -> list[tuple[int, int, float]]:
    """(start, end, best IoU with any true box) of each box written after the thought; [] for a wall of them."""
    thought = completion.lower().rfind("</think>") + 1
    spans = [m.span() for m in _QUERY.finditer(completion, thought)]
    if is_wall(len(spans), len(right)):
        return []
    read = [(start, end, boxes(completion[start:end])) for start, end in spans]
    return [
        (a, b, max((iou(found[0], each) for each in right), default=0.0)) for a, b, found in read if len(found) == 1
    ]


@reward(
    "query_boxes",
    success=True,
    check=check_boxes,
    method="dino_r1_grqo",
    paper="DINO-R1 (GRQO), arXiv 2505.24025",
    formula="u_q = max over true boxes of IoU(box q, box)",
    confidence="reconstructed",
)
def query_boxes(completions, solution) -> list[dict[str, Any]]:
    """`boxes_iou` of the answer; `columns: [segment, action_reward]` say what each box of it is worth, for its tokens.

    For credit `dino_r1_grqo`. A query's match is its best IoU with any true box, as in the paper: that no two boxes
    claim the same truth is left to the answer's own reward.
    """
    rows = []
    for completion, truth in zip(completions, solution, strict=True):
        found = queries(completion, true_boxes(truth)) if answers.outside_thought(completion) else []
        rows.append({
            "score": where(completion, truth, every=True),
            "queries": float(len(found)),
            "segment": [[start, end, q] for q, (start, end, _) in enumerate(found)],
            "action_reward": [[start, end, worth] for start, end, worth in found],
        })  # fmt: skip
    return rows
