"""Actions on a screen: the right action, at the right place, with the right text (GUI-Libra, arXiv 2602.22190).

    score = [same kind] * [point in the true box] * [F1 of the words > .5, or the same direction]

What the truth does not name is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.actions import SPOTS, Action, action, action_in
from mmrl.rewards.boxes import Box, from_value
from mmrl.rewards.distances import overlap_f1, words
from mmrl.rewards.points import Point, distance
from mmrl.rewards.tasks import UNREAD, Verdict, kind

LEAST_F1 = 0.5
NEAR = 0.14
"""Of the screen: how far from a true point a click may fall where no box is known (AndroidInTheWild)."""
VALUED = frozenset(("type", "key", "open", "answer", "scroll"))
"""The kinds whose text is compared: what a truth says of the button it clicks is no part of the action."""
POINTED = frozenset(("click", "long_press", "double_click", "right_click", "hover"))


def true_action(solution: Any) -> tuple[Action, Box | None]:
    """(action, the box it should act in); RewardError for what is no action."""
    parsed = answers.json_value(solution) if isinstance(solution, str) else solution
    right = action_in(parsed) if isinstance(parsed, Mapping | list) else action(answers.truth(solution))
    if right is None:
        answers.refuse(solution, "is no action", '{"action": "click", "bbox": [x1, y1, x2, y2]}, or a call')
    box = _box(parsed)
    if right.kind in POINTED and right.point is None and box is None:
        answers.refuse(solution, f"does not say where to {right.kind}", '"bbox": [x1, y1, x2, y2], or "point"')
    return right, box


def _box(value: Any) -> Box | None:
    if isinstance(value, list):
        return _box(value[0]) if len(value) == 1 else None
    if not isinstance(value, Mapping):
        return None
    for inner in (value, value.get("arguments"), value.get("parameters")):
        fields = inner if isinstance(inner, Mapping) else {}
        found = next((b for n in ("bbox", "box", *SPOTS) if fields.get(n) and (b := from_value(fields[n]))), None)
        if found and found[0][2] > found[0][0] and found[0][3] > found[0][1]:
            return found[0]
    return None


def hits(point: Point | None, right: Action, box: Box | None, within: float | None) -> float:
    """1 for a point in the true box; without one, near the true point: `within`, in the units of the answer."""
    if point is None:
        return 0.0
    if box is not None:
        return float(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])
    most = within if within is not None else NEAR * (1.0 if max(*point, *right.point) <= 1 else 1000.0)
    return float(distance(point, right.point) <= most)


def says(found: Action, right: Action) -> float:
    """1 where the text has the words of the true one, F1 above a half, or the same direction."""
    if right.kind not in VALUED:
        return 1.0
    if right.direction is not None:
        return float(found.direction == right.direction)
    if right.text is None:
        return 1.0
    if found.text is None:
        return 0.0
    if answers.plain(found.text) == answers.plain(right.text):
        return 1.0
    return float(overlap_f1(words(found.text), words(right.text)) > LEAST_F1)


@kind(
    "gui",
    read=true_action,
    valid=lambda text: action(text) is not None,
    answer='one action: `{"action": "click", "point": [x, y]}`, `click(x, y)`, `type(content=\'...\')`, '
    "`scroll(direction='down')`, a tool call; several are none",
    truth='the same; `"bbox"` is the box a click should fall in',
    aliases=("gui_action", "gui_agent", "ui_action", "mobile_agent", "computer_use"),
)
def gui(answer: str, right: tuple[Action, Box | None], *, within: float | None = None) -> Verdict:
    """One action on a screen: its kind, times its place (in the true box), times its text or direction.

    within  how near to a true point without a box; None: .14 of a screen of 1 or 1000 units
    """
    found = action(answer)
    if found is None:
        return UNREAD
    true, box = right
    parts = {"action": float(found.kind == true.kind)}
    placed = box is not None or (true.point is not None and true.kind != "scroll")
    parts["place"] = hits(found.point, true, box, within) if placed and true.kind != "scroll" else 1.0
    parts["value"] = says(found, true)
    if not parts["action"]:
        return Verdict(0.0, True, dict.fromkeys(parts, 0.0))
    return Verdict(parts["action"] * parts["place"] * parts["value"], True, parts)
