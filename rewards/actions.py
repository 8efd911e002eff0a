"""Reading one action on a screen, from JSON, a call, or a line such as `CLICK <point>[[10, 20]]</point>`.

{"action": "click", "point": [10, 20]}   {"action_type": "type", "text": "hi"}   {"action": "scroll", "direction": "up"}
{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [10, 20]}}    in <tool_call> tags
click(10, 20)   pyautogui.click(x=10, y=20)   click(start_box='(10,20)')   type(content='hi')   scroll(direction='up')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.points import Point, points, points_in

LONGEST = 5000
SYNONYMS = {
    "click": ("click", "tap", "left_click", "leftclick", "press_on", "select", "left click", "touch", "moveto_click"),
    "long_press": ("long_press", "longpress", "long press", "press_and_hold"),
    "double_click": ("double_click", "doubleclick", "left_double", "double click", "double_tap"),
    "right_click": ("right_click", "rightclick", "right_single", "right click"),
    "type": ("type", "input", "input_text", "write", "typewrite", "enter_text", "type_text", "set_text", "fill"),
    "scroll": ("scroll", "swipe", "scroll_page", "fling"),
    "drag": ("drag", "drag_to", "dragto", "left_click_drag", "drag_and_drop"),
    "key": ("key", "press", "hotkey", "press_key", "keypress", "key_combination", "system_button"),
    "hover": ("hover", "move", "mouse_move", "moveto", "move_to"),
    "open": ("open", "open_app", "launch", "start_app", "navigate", "goto"),
    "back": ("back", "press_back", "navigate_back", "go_back"),
    "home": ("home", "press_home", "navigate_home", "go_home"),
    "enter": ("enter", "press_enter"),
    "wait": ("wait", "sleep"),
    "terminate": (
        "terminate",
        "finished",
        "finish",
        "complete",
        "status_task_complete",
        "stop",
        "done",
        "task_complete",
    ),
    "answer": ("answer", "respond", "reply"),
}
_KINDS = {name: kind for kind, names in SYNONYMS.items() for name in names}
NAMES = ("action", "action_type", "type", "name", "operation", "function")
TEXTS = (
    "text",
    "content",
    "value",
    "input_text",
    "key",
    "keys",
    "app",
    "app_name",
    "button",
    "status",
    "answer",
    "url",
    "goal_status",
)
SPOTS = ("point", "coordinate", "coordinates", "position", "start_box", "bbox", "box", "point_2d", "bbox_2d",
         "location", "element", "start_point", "start_coordinate", "target", "touch_point")  # fmt: skip
_ENDED = frozenset(("finish", "finished", "complete", "success", "done"))
DIRECTIONS = ("up", "down", "left", "right")
_CALL = re.compile(
    r"\b(?:pyautogui\.|computer\.|mobile\.)?([a-z_]+(?: [a-z]+)?)\s*\((.*?)\)\s*(?:;|$|\n)", re.IGNORECASE | re.DOTALL
)
_DONE = re.compile(r"\bdo\(\s*action\s*=\s*[\"'](\w[\w ]{0,30})[\"']\s*(?:,\s*|(?=\)))", re.IGNORECASE)
"""`do(action="Tap", element=[x, y])`, of AutoGLM."""
_ARGUMENT = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\]|\([^)]*\)|[^,]+)")
_LINE = re.compile(
    r"^\W*(?:action\s*[:=]\s*)?([a-z_]+(?:[ _](?:click|press|text|key|back|home|app))?)\b\s*:?\s*(.*)$",
    re.IGNORECASE | re.DOTALL,
)
_TOLD = re.compile(
    r"\b(click|tap|double[ -]click|right[ -]click|long[ -]press)(?:ing)?\b(?= (?:on |at )?[^.\n(\[]{0,60}[(\[])",
    re.IGNORECASE,
)
"""`The next action is to click on "Save" at (10, 20).`"""
_LEADING = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*(?:,|$)")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|\[([^\[\]\d][^\[\]]*)\]")


@dataclass(frozen=True)
class Action:
    """kind as in SYNONYMS; point where it acts, text it carries, direction it scrolls."""

    kind: str
    point: Point | None = None
    text: str | None = None
    direction: str | None = None


def action(text: str) -> Action | None:
    """The one action of an answer; None for none, and for several."""
    text = re.sub(r"</?(?:tool_call|action)>", " ", dressing.narrow(text[:LONGEST])).strip()
    value = answers.json_value(text) if "{" in text else None
    if value is not None:
        return action_in(value)
    text = answers.bare(text)
    text = _DONE.sub(r"\1(", text)
    calls = [m for m in _CALL.finditer(text) if m[1].lower() in _KINDS]
    if len(calls) == 1:
        return _of_call(_KINDS[calls[0][1].lower()], calls[0][2])
    match = _LINE.match(text) if not calls else None
    kind = _kind(match[1]) if match else None
    if match and kind:
        return _of_line(kind, match[2])
    told = list(_TOLD.finditer(text)) if not calls else []
    spots = points(text, centres=True) if len(told) == 1 else []
    return Action(_KINDS[told[0][1].lower().replace("-", " ")], spots[0]) if len(spots) == 1 else None


def action_in(value: Any) -> Action | None:
    """Of a parsed value: a mapping, or the only one in a list."""
    if isinstance(value, list):
        return action_in(value[0]) if len(value) == 1 else None
    if not isinstance(value, Mapping):
        return None
    value = {str(key).lower(): each for key, each in value.items()}
    inner = value.get("arguments", value.get("parameters", value.get("args")))
    fields = {**value, **{str(k).lower(): v for k, v in inner.items()}} if isinstance(inner, Mapping) else value
    if isinstance(fields.get("action"), Mapping):
        return action_in(fields["action"])
    kind = next((k for n in NAMES if isinstance(fields.get(n), str) and (k := _kind(fields[n]))), None)
    if kind is None:
        called = isinstance(fields.get("action"), str) and "(" in fields["action"]
        return action(fields["action"]) if called else _unnamed(fields)
    used = next(n for n in NAMES if isinstance(fields.get(n), str) and _kind(fields[n]))
    rest = {k: v for k, v in fields.items() if k != used}
    spots = next((found for n in SPOTS if rest.get(n) and (found := points_in(rest[n], centres=True))), [])
    if not spots:
        spots = points_in({k: v for k, v in rest.items() if k in ("x", "y")})
    said = next((rest[n] for n in TEXTS if isinstance(rest.get(n), str | int | float | list)), None)
    written = "+".join(map(str, said)) if isinstance(said, list) else None if said is None else str(said)
    return _pressed(Action(kind, spots[0] if spots else None, written, _direction(rest)))


def _unnamed(fields: Mapping[str, Any]) -> Action | None:
    """Of a mapping whose names are the actions: `{"POINT": [x, y]}`, `{"TYPE": "hi"}`, `{"PRESS": "BACK"}`."""
    if isinstance(fields.get("type"), str) and len(fields.keys() - {"thought"}) == 1:
        return Action("type", text=fields["type"])
    if isinstance(fields.get("press"), str):
        return _pressed(Action("key", text=fields["press"]))
    if "action" in fields or "point" not in fields:
        return Action("terminate") if str(fields.get("status")).lower() in _ENDED and "action" not in fields else None
    found = points_in(fields["point"], centres=True)
    way = str(fields.get("to")).lower()
    return Action("scroll" if way in DIRECTIONS else "click", found[0], None, way if way in DIRECTIONS else None) if (
        len(found) == 1) else None  # fmt: skip


def _pressed(made: Action) -> Action:
    """A key or button that is an action of its own: `press("back")` is `back`."""
    pressed = _KINDS.get((made.text or "").strip().lower()) if made.kind == "key" else None
    return Action(pressed) if pressed in ("back", "home", "enter") else made


def _direction(fields: Mapping[str, Any]) -> str | None:
    said = [str(fields[n]).strip().lower() for n in ("direction", "scroll_direction", "text", "value") if fields.get(n)]
    told = next((each for each in said if each in DIRECTIONS), None)
    return told or next((_way(fields[n]) for n in ("pixels", "clicks", "amount", "scroll_y") if fields.get(n)), None)


def _way(amount: Any) -> str | None:
    """pyautogui's sign: what is negative scrolls down."""
    match = re.fullmatch(r"\s*([-+]?)\d+(?:\.\d+)?\s*", str(amount))
    return ("down" if match[1] == "-" else "up") if match else None


def _kind(name: str) -> str | None:
    return _KINDS.get(" ".join(name.strip().lower().split())) or _KINDS.get("_".join(name.strip().lower().split()))


def _of_call(kind: str, inside: str) -> Action:
    named = {key.lower(): each.strip().strip("'\"") for key, each in _ARGUMENT.findall(inside)}
    fields: dict[str, Any] = dict(named)
    found = points(" ".join(named[n] for n in SPOTS if n in named), centres=True) if named else []
    if not found and {"x", "y"} <= named.keys():
        found = points(f"x={named['x']}, y={named['y']}")
    if not found and named and (leading := _LEADING.match(inside)):  # click(10, 20, button='left')
        found = [(float(leading[1]), float(leading[2]))]
    if not named:
        found = points(f"({inside})", centres=True) or points(inside, centres=True)
        quoted = _QUOTED.search(inside)
        fields = {"text": next(g for g in quoted.groups() if g is not None)} if quoted else {"text": inside.strip()}
        fields = {} if found else fields
    if kind == "scroll" and not named and re.fullmatch(r"\s*[-+]?\d+\s*", inside):
        fields, found = {"clicks": inside}, []
    said = next((fields[n] for n in TEXTS if fields.get(n)), None)
    if said is None and kind in ("type", "key") and (quoted := _QUOTED.match(inside.strip())):
        said = next(group for group in quoted.groups() if group is not None)  # typewrite('hi', interval=0.1)
    return _pressed(Action(kind, found[0] if found else None, said, _direction(fields)))


def _of_line(kind: str, rest: str) -> Action:
    found = points(rest, centres=True)
    quoted = _QUOTED.search(rest)
    said = next(g for g in quoted.groups() if g is not None) if quoted else rest.strip().strip(".") or None
    way = next((d for d in DIRECTIONS if re.search(rf"\b{d}\b", rest, re.IGNORECASE)), None)
    return _pressed(Action(kind, found[0] if len(found) == 1 else None, None if found and not quoted else said, way))
