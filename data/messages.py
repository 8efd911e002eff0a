"""Chat messages: read in every spelling, media in their places, a last answer taken off, dressed for the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from mmrl.data.formats.base import messages_in
from mmrl.data.images import describe
from mmrl.data.items import CONDITION, KINDS, read_item
from mmrl.data.options import option_lines
from mmrl.data.sources import RowError
from mmrl.errors import ConfigError, DataError, unknown

ROLES = ("system", "developer", "user", "assistant", "tool")
ASKING = ("user", "tool")  # whose messages may show media
SPEAKERS = {"human": "user", "gpt": "assistant", "tool_response": "tool", "observation": "tool"}
"""Roles of ShareGPT and ms-swift that have other names here."""
_TAGS = re.compile(r"(?<!\\)(<image>|<video>)")
_ESCAPED = re.compile(r"\\(<(?:image|video)>)")
_FIELDS = re.compile(r"\{(\{[A-Za-z_]\w*\})\}|\{([A-Za-z_]\w*)\}")

Messages = list[dict[str, Any]]


def read_messages(prompt: Any) -> tuple[Messages, dict[str, list[Any]]]:
    """Chat messages with contents as lists of parts, and the media their parts carried.

    A string is one user message, or the messages it holds as JSON. Parts become `{"type": "text", "text"}`,
    `{"type": "image"}`, `{"type": "video"}`; `<image>` and `<video>` in the text of users and tools mark places too,
    unless written `\\<image>`; in an answer or a system message they are refused.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    if isinstance(prompt, str):
        prompt = messages_in(prompt) or [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise RowError("prompt", f"expected a string or chat messages, got {describe(prompt)}")
    return [_read_message(m, found) for m in prompt], found


def _read_message(message: Any, found: dict[str, list[Any]]) -> dict[str, Any]:
    if isinstance(message, Mapping) and message.get("from") is not None and "value" in message:
        message = {"role": message["from"], "content": message["value"]}
    if not isinstance(message, Mapping) or message.get("role") is None or "content" not in message:
        raise RowError("prompt", f"expected a message {{'role', 'content'}}, got {describe(message)}")
    role, content = SPEAKERS.get(message["role"], message["role"]), message["content"]
    if role not in ROLES:
        raise RowError("prompt", unknown("role", role, ROLES))
    if role == "assistant" and isinstance(content, int | float):
        content = [{"type": "text", "text": str(content), "value": content}]  # a truth that is a number stays one
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RowError("prompt", f"expected a content of text or parts, got {describe(content)}")
    parts: list[dict[str, Any]] = []
    for part in content:
        parts += _read_part(part, found, split_tags=role in ASKING)
    if role not in ASKING and (tag := next((t[0] for p in parts if (t := _TAGS.search(p.get("text", "")))), None)):
        fix = f"media are shown by the user; move it there, or write \\{tag} if the text is meant"
        raise RowError("prompt", f"{tag} stands in a message by {role!r}", fix)
    if role not in ASKING:
        parts = [{**p, "text": _ESCAPED.sub(r"\1", p["text"])} if "text" in p else p for p in parts]
    return {"role": role, "content": parts}


def _read_part(part: Any, found: dict[str, list[Any]], split_tags: bool) -> list[dict[str, Any]]:
    if not isinstance(part, Mapping):
        raise RowError("prompt", f"expected a content part {{'type', ...}}, got {describe(part)}")
    part = {k: v for k, v in part.items() if v is not None}  # columnar files fill absent keys with null
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        if not split_tags:
            kept = {k: part[k] for k in ("type", "text", "value") if k in part}
            return [kept] if part["text"] else []
        pieces = [p for p in _TAGS.split(part["text"]) if p]
        return [{"type": p[1:-1]} if _TAGS.fullmatch(p) else _text(_ESCAPED.sub(r"\1", p)) for p in pieces]
    if kind in ("image", "image_url", "video", "video_url"):
        kind = kind.removesuffix("_url")
        if not part.keys() - {"type", "role"}:
            _, role = read_item(kind, {kind: "", **part})
        else:
            item, role = read_item(kind, part)
            found[kind].append(item)
        return [{"type": kind} if role is None else {"type": kind, "role": role}]
    raise RowError("prompt", f"expected a part of type text, image or video, got {describe(dict(part))}")


def take_answer(messages: Messages) -> tuple[Messages, Any]:
    """The messages without a last turn of the assistant, and what it says; None where the user has the last word."""
    if messages[-1]["role"] == "assistant":
        *before, last = messages
        if any(p["type"] != "text" for p in last["content"]):
            raise RowError("prompt", "the last answer holds media; a truth is text")
        values = [p["value"] for p in last["content"] if "value" in p]
        answer = values[0] if values else "".join(p["text"] for p in last["content"])
        if isinstance(answer, str) and not answer.strip():
            raise RowError("prompt", "the last answer is blank", "a last answer is the solution: write it, or drop it")
    else:
        before, answer = messages, None
    _check_order(before)
    if not before or before[-1]["role"] not in ("user", "tool"):
        said = f"the last message is by {before[-1]['role']!r}" if before else "holds no question, only an answer"
        raise RowError("prompt", said, "a question by the user comes last, or second to last before its answer")
    return before, answer


def _check_order(messages: Messages) -> None:
    """Turns that templates drop or read as others are refused: a conversation that begins with an answer (its question
    was cut off), two answers in a row (which is meant?), a system message after the first."""
    for turn, (previous, role) in enumerate(pairwise([None, *(m["role"] for m in messages)]), 1):
        if role == "assistant" and previous in (None, "system", "developer"):
            fix = "a conversation begins with the user's question; leave that answer out, or give its question"
            raise RowError("prompt", f"message {turn} is an answer before any question", fix)
        if role == previous == "assistant":
            fix = "join the two, or leave one out"
            raise RowError("prompt", f"messages {turn - 1} and {turn} are two answers in a row", fix)
        if role in ("system", "developer") and previous is not None:
            fix = "the system message comes first, and there is one"
            raise RowError("prompt", f"message {turn} is by {role!r}, after others", fix)


def place_media(messages: Messages, counts: Mapping[str, int], conditions: Mapping[str, int]) -> Messages:
    """Media without a marked place go before the text of the last user message, images first, conditions before all.

    counts, conditions  media of each kind, and how many of them, the first, are conditions of a generator.
    Contents that hold text only become strings again.
    """
    leading: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    for kind in KINDS:
        marked = sum(p["type"] == kind for m in messages for p in m["content"])
        roles = [{"type": kind, "role": CONDITION}] * conditions[kind]
        plain = counts[kind] - conditions[kind]
        if marked == counts[kind] and conditions[kind]:
            messages = _assign(messages, kind, [*roles, *[{"type": kind}] * plain])
        elif marked in (0, plain):
            given += roles
            leading += [] if marked else [{"type": kind}] * plain
        else:
            raise RowError(
                "prompt",
                f"{marked} {kind} place(s) in the messages, but {counts[kind]} {kind}(s) in the row",
                f"mark each with <{kind}>, or none of them (\\<{kind}> is text)",
            )
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if (leading or given) and not users:
        raise RowError("prompt", "has media but no user message to put them in")
    placed = []
    for i, message in enumerate(messages):
        first = given if users and i == users[0] else []
        content = [*first, *(leading if users and i == users[-1] else []), *message["content"]]
        said = message["role"] in ("system", "developer", "tool") or _says(content)
        if not said or (i == len(messages) - 1 and not _says(content)):
            raise RowError("prompt", "is empty" if len(messages) == 1 else f"message {i + 1} is empty")
        placed.append({"role": message["role"], "content": _joined(content)})
    return placed


def _says(content: list[dict[str, Any]]) -> bool:
    return any(p["type"] != "text" or p["text"].strip() for p in content)


def _assign(messages: Messages, kind: str, parts: list[dict[str, Any]]) -> Messages:
    """`parts` in the marked places of one kind, in order."""
    left = iter(parts)
    return [{**m, "content": [next(left) if p["type"] == kind else p for p in m["content"]]} for m in messages]


def _joined(content: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if all(part["type"] == "text" for part in content):
        return "".join(part["text"] for part in content)
    return content


def add_text(messages: Messages, text: str) -> Messages:
    """`text` on lines of its own at the end of the last user message."""
    last = max(i for i, m in enumerate(messages) if m["role"] in ("user", "tool"))
    before = "".join(p.get("text", "") for p in messages[last]["content"])
    lead = "" if not before or before.endswith("\n") else "\n"
    changed = {**messages[last], "content": join_texts([*messages[last]["content"], _text(lead + text)])}
    return [*messages[:last], changed, *messages[last + 1 :]]


def text_of(messages: Messages) -> str:
    """The text of messages as they were read."""
    return "\n".join("".join(p.get("text", "") for p in m["content"]) for m in messages)


def fields_of(template: str | None) -> set[str]:
    """The columns that a template reads, `prompt` left out."""
    return {m[2] for m in _FIELDS.finditer(template or "") if m[2]} - {"prompt"}


def present(
    messages: Messages, system: str | None, template: str | None, columns: Mapping[str, Any] | None = None
) -> Messages:
    """Messages under a system prompt and with `template` ("{prompt}\\nAnswer in ...") around the user's last.

    `{name}` in the template is a column of the row, `{options}` its options as lines; `{{name}}` is text.
    """
    messages = list(messages)
    if template is not None:
        before, after = _filled(template, columns or {})
        last = max(i for i, m in enumerate(messages) if m["role"] in ("user", "tool"))
        content = messages[last]["content"]
        if isinstance(content, str):
            content = before + content + after
        else:
            content = join_texts([_text(before), *content, _text(after)])
        messages[last] = {**messages[last], "content": content}
    if system is not None:
        if messages[0]["role"] in ("system", "developer"):
            raise DataError("a system prompt is configured, but the row has one of its own; keep one of the two")
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _filled(template: str, columns: Mapping[str, Any]) -> tuple[str, str]:
    """What stands before and after `{prompt}`, columns filled in."""
    halves, place, end = ["", ""], 0, 0
    for match in _FIELDS.finditer(template):
        halves[min(place, 1)] += template[end : match.start()]
        end = match.end()
        if match[2] == "prompt":
            place += 1
        else:
            halves[min(place, 1)] += match[1] or _column(match[2], columns)
    if place != 1:
        raise ConfigError(f"template must hold {{prompt}} exactly once, got {template!r}")
    halves[1] += template[end:]
    return halves[0], halves[1]


def _column(name: str, columns: Mapping[str, Any]) -> str:
    if name not in columns:
        known = unknown("column", name, {"prompt", *columns})
        said = f"the template reads {{{name}}}, and the row has no such column"
        raise RowError(name, said, f"{known}; write {{{{{name}}}}} if the text is meant")
    value = columns[name]
    if name == "options":
        return option_lines(value or ())
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    raise RowError(name, f"the template reads {{{name}}}, expected text or a number, got {describe(value)}")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def join_texts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring text parts become one; empty ones go."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] != "text":
            joined.append(part)
        elif joined and joined[-1]["type"] == "text":
            joined[-1] = _text(joined[-1]["text"] + part["text"])
        elif part["text"]:
            joined.append(part)
    return joined
