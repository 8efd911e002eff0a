"""JSON as models write it: with a comma before the bracket that closes, Python's quotes and words, bare keys, comments.

    loose('[{"a": 1,},]')      [{"a": 1}]            loose("{'a': None}")      {"a": None}
    loose("{0: [1, 2]}")       {"0": [1, 2]}         loose("{a: 1}")           {"a": 1}

What is no such text is None. Nothing is evaluated: Python's reader of literals knows no names and no calls.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

LONGEST = 50_000
DEEPEST = 60
_TEXT = r"\"(?:[^\"\\\n]|\\.)*(?:\"|$|(?=\n))|'(?:[^'\\\n]|\\.)*(?:'|$|(?=\n))"  # or one that never ends
_PIECES = re.compile(
    rf"(?P<text>{_TEXT})|(?P<comma>,\s*(?=[\]}}]))|(?P<comment>//[^\n]*|/\*.{{0,2000}}?\*/)"
    r"|(?P<key>(?<=[{,\s])[A-Za-z_]\w{0,40}(?=\s*:))|(?P<word>\b(?:true|false|null|NaN)\b)",
    re.DOTALL,
)
_WORDS = {"true": "True", "false": "False", "null": "None", "NaN": "None"}


def loose(text: str) -> Any:
    """The list or mapping of a text that is one and no more; None for what cannot be read."""
    text = text.strip()
    if not text or len(text) > LONGEST or text[0] not in "[{" or text[-1] not in "]}" or depth(text) > DEEPEST:
        return None
    plain = _PIECES.sub(lambda m: "" if m["comma"] or m["comment"] else f'"{m[0]}"' if m["key"] else m[0], text)
    try:
        value = json.loads(plain)
    except (ValueError, RecursionError):
        value = _literal(_PIECES.sub(lambda m: _WORDS[m[0]] if m["word"] else m[0], plain))
    return value if isinstance(value, dict | list) else None


def depth(text: str) -> int:
    """How deep its brackets are nested at most."""
    deepest = here = 0
    for match in re.finditer(r"[\[{(]|[\]})]", text):
        here += 1 if match[0] in "[{(" else -1
        deepest = max(deepest, here)
    return deepest


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes
            return _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _plain(value: Any) -> Any:
    """Tuples as lists and keys as texts. ValueError for what JSON has not."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str | int | float | None):
        return value
    raise ValueError
