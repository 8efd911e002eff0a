"""Reading answers: the one place where text becomes a letter, a number, a set, a list or JSON.

Every scorer parses prediction and truth through these functions, so that what counts as "the answer" is the
same for all. Nothing is ever evaluated. None means "there is no such answer here".

The answer is looked for outside the thought: in the LAST `<answer>` tag, since taking the first rewards a decoy
written early; then in the last balanced `\\boxed{}`; then in the whole text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

LETTERS = "ABCDEFGHIJ"
MOST_STARTS = 1000  # brackets tried as the start of JSON: degenerate outputs are all brackets
_BLANKS = re.compile(r"(?<![ \t])[ \t]+(?=[<>/])|(?<=[<>/])[ \t]+")


def normalise(text: str) -> str:
    """Strip, and drop the blanks some models put around `<`, `>` and `/`; line breaks stay."""
    return _BLANKS.sub("", text.strip())


def outside_thought(text: str) -> str:
    """What follows the last `</think>`; nothing when the thought was never closed; all of it without one."""
    lowered = text.lower()
    end = lowered.rfind("</think>")
    if end >= 0:
        return text[end + len("</think>") :]
    start = lowered.find("<think>")
    return text if start < 0 else text[:start]


def tagged(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`."""
    end = text.lower().rfind("</answer>")
    if end < 0:
        return None
    start = text.lower().rfind("<answer>", 0, end)
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance."""
    starts = {match.end() - 1 for match in re.finditer(r"\\f?boxed\s*\{", text)}
    stack: list[int] = []
    last: tuple[int, int] = (-1, -1)
    for i, character in enumerate(text if starts else ""):
        if character == "{":
            stack.append(i)
        elif character == "}" and stack:
            start = stack.pop()
            if start in starts and start > last[0]:
                last = start, i
    return text[last[0] + 1 : last[1]].strip() if last[0] >= 0 else None


def extract(text: str, *, whole: bool = True) -> str:
    """The answer in a completion; without tag or box, the whole text, or "" when `whole` is False."""
    text = outside_thought(normalise(text))
    answer = tagged(text)
    inner = boxed(text if answer is None else answer)
    if inner is not None:
        return inner
    if answer is not None:
        return answer
    return text.strip() if whole else ""


def truth(solution: Any) -> str:
    """The answer in a `solution` column: `$...$` and tags taken off, numbers written out."""
    text = normalise(str(solution))
    for mark in ("$$", "$"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
            break
    return extract(text)


# ---------------------------------------------------------------------------------------------- option letters
# "the answer is A cat" is a sentence, "the answer is A because" is a choice: A and I are words, too.
_CHOICE = r"\(?\**([B-HJ]|[AI](?!\s+(?!because\b|since\b|as\b|for\b)[a-z]))\b\**\)?"
_STATEMENTS = (
    re.compile(r"(?i:answer|choice)(?:\s+(?i:is|would be))?\s*[:=]?\s*(?i:option\s+)?" + _CHOICE),
    re.compile(r"(?i:choose|select|pick)\s+(?i:option\s+)?" + _CHOICE),
    re.compile(r"(?i:option)\s+" + _CHOICE + r"\s+(?i:is\s+(?:the\s+)?(?:correct|right))"),
    re.compile(r"\*\*\(?([A-J])\)?[.:]?\*\*"),
)
_LEADING = re.compile(r"\(([A-Ja-j])\)|([A-J])[.):\]]|([a-j])\)")
_SHORT = 12


def option_letter(text: str, options: Sequence[str] | None = None) -> str | None:
    """The option a short answer or a sentence chooses, A to J; ambiguous texts choose none.

    options  the texts of A, B, ... : an answer that spells one out chooses its letter
    """
    text = text.strip()
    if len(text) == 1 and text.upper() in LETTERS:
        return text.upper()
    if letter := _leading_letter(text):
        return letter
    sentence = " ".join(text.split())
    for pattern in _STATEMENTS:
        if found := pattern.findall(sentence):
            return found[-1]
    for line in reversed(text.splitlines()[-5:]):
        line = line.strip()
        if len(line) == 1 and line in LETTERS:
            return line
        if letter := _leading_letter(line):
            return letter
    alone = set(re.findall(r"\b[A-J]\b", text)) if len(text) <= _SHORT else set()
    if len(alone) == 1:
        return alone.pop()
    return _letter_of_option(text, options or ())


def _leading_letter(text: str) -> str | None:
    match = _LEADING.match(text)
    return next(group for group in match.groups() if group).upper() if match else None


def _letter_of_option(text: str, options: Sequence[str]) -> str | None:
    text, options = plain(text), [plain(re.sub(r"^\(?[A-J][.):]\s*", "", str(option))) for option in options]
    for matches in (
        lambda option: text == option,
        lambda option: text.startswith(option),
        lambda option: text.endswith(option),
    ):
        found = [i for i, option in enumerate(options) if option and matches(option)]
        if len(found) == 1:
            return LETTERS[found[0]]
    return None


def option_letters(text: str) -> frozenset[str]:
    """All options a multiple-answer reply chooses: "A, C", "AC", "(A) and (C)"."""
    text = text.strip()
    if re.fullmatch(r"[A-J]{1,10}", text):
        return frozenset(text)
    return frozenset(re.findall(r"\b[A-J]\b", text))


# ------------------------------------------------------------------------------------------------------ numbers
# fmt: off
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
_WORDS = {word: i for i, word in enumerate(_UNITS)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_WORD = re.compile(rf"\b({'|'.join(_TENS)})[ -]({'|'.join(_UNITS[1:10])})\b|\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_PLAIN = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d*|\.\d+)?(?:(?<=[\d.])[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"(?<![\w.,/])({_PLAIN})(?:\s*/\s*([-+]?\d+(?:\.\d+)?))?\s*(%)?(?![\d/]|[.,]\d)")


def number(text: str, *, share: bool = False) -> float | None:
    """The one number in a text: `1,234`, `3/4`, `-2.5e3`, `twenty-one`; None if there is none, or several.

    share  the quantity asked for is a share of 1, so that `50%` is .5; otherwise it is 50
    """
    text = " ".join(text.replace("\N{MINUS SIGN}", "-").split())
    found = {v for m in _NUMBER.finditer(text) if m[1] and (v := _value(m, share)) is not None}
    if not found:
        found = {float(_spelled(match)) for match in _WORD.finditer(text)}
    return found.pop() if len(found) == 1 else None


def _value(match: re.Match, share: bool) -> float | None:
    digits = match[1].replace(",", "")
    if not any(c.isdigit() for c in digits):
        return None
    value = float(digits)
    if match[2]:
        divisor = float(match[2])
        value = value / divisor if divisor else math.nan
    if match[3] and share:
        value /= 100
    return value if math.isfinite(value) else None


def _spelled(match: re.Match) -> int:
    tens, units, single = (word and word.lower() for word in match.groups())
    return _WORDS[single] if single else _WORDS[tens] + _WORDS[units]


# ---------------------------------------------------------------------------------------------------- the rest
_TRUE, _FALSE = frozenset(("yes", "true", "1")), frozenset(("no", "false", "0"))


def boolean(text: str) -> bool | None:
    """Yes or no, by whole words: "not" holds no "no". A text that says both says neither."""
    text = plain(text)
    if text in _TRUE | _FALSE:
        return text in _TRUE
    words = set(re.findall(r"[a-z]+", text))
    yes, no = bool(words & _TRUE), bool(words & _FALSE)
    return yes if yes != no else None


def plain(text: str) -> str:
    """For comparing texts: case folded, white space collapsed, final punctuation and quotes taken off."""
    return " ".join(text.split()).strip("\"'`").rstrip(".!,;:").casefold()


def json_value(text: str) -> Any:
    """The JSON in a text: all of it, the last fenced block, or the last {...} or [...] that parses."""
    for candidate in (text, *reversed(re.findall(r"```(?:json)?(.*?)```", text, re.DOTALL))):
        value = _parse(candidate)
        if isinstance(value, dict | list):
            return value
    last, end = None, 0
    for start in [match.start() for match in re.finditer(r"[{\[]", text)][:MOST_STARTS]:
        if start >= end:  # not inside the value found before
            try:
                last, end = json.JSONDecoder().raw_decode(text, start)
            except (ValueError, RecursionError):
                continue
    return last


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
