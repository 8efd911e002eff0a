r"""Reading answers: where an answer stands in a text, and what every kind of answer shares.

Each kind has one parser, which serves prediction and truth: `options` and `chosen` (letters), `numbers`, `booleans`,
`temporal`, `boxes`, `expressions`. Nothing is ever evaluated. None means "there is no such answer here".

The answer is looked for outside the thought: in the LAST `<answer>` tag, since taking the first rewards a decoy
written early; then in the last balanced `\boxed{}`; then in the whole text. A tag or box that is opened and never
closed is a reply that was cut: it has no answer.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NoReturn

from mmrl.errors import RewardError
from mmrl.rewards.loose_json import loose

MOST_STATEMENTS = 100  # of "the answer is": the last ones
MOST_STARTS = 1000  # brackets tried as the start of JSON: degenerate outputs are all brackets
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u200e\u200f\u00ad"))  # characters of no width
_BLANKS = re.compile(r"(?<![ \t])[ \t]+(?=[<>/])|(?<=[<>/])[ \t]+")
_FENCED = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)
_LISTED = re.compile(r"[\s,;]*(?:and\b\s*)?(?:(?:\d{1,3}[.)]|[-*\u2022])\s*)?")  # between JSON values that are one list
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_STAGES = ("</summary>", "</caption>", "</reasoning>")  # of LLaVA-CoT, whose last stage is the answer
_BOX_START = re.compile(r"\\f?boxed\s*\{")


def normalise(text: str) -> str:
    """Strip, and drop what has no width and the blanks some models put around `<`, `>` and `/`; line breaks stay."""
    return _BLANKS.sub("", text.translate(_UNSEEN).strip())


def outside_thought(text: str) -> str:
    """What follows the last `</think>`; nothing when a thought was never closed; all of it without one."""
    lowered = text.lower()
    end = lowered.rfind("</think>")
    rest = text[end + len("</think>") :] if end >= 0 else text
    return "" if "<think>" in rest.lower() else rest


def tagged(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`."""
    end = text.lower().rfind("</answer>")
    if end < 0:
        return None
    start = text.lower().rfind("<answer>", 0, end)
    return None if start < 0 else text[start + len("<answer>") : end].strip()


def _concluded(text: str) -> str | None:
    """The content of the last `<conclusion>` that follows another stage."""
    lowered = text.lower()
    end = lowered.rfind("</conclusion>")
    start = lowered.rfind("<conclusion>", 0, max(end, 0))
    staged = start >= 0 and lowered[:start].rstrip().endswith(_STAGES)
    return text[start + len("<conclusion>") : end].strip() if staged else None


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance."""
    starts = {match.end() - 1 for match in _BOX_START.finditer(text)}
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
    answer = _concluded(text) if answer is None else answer
    inner = boxed(text if answer is None else answer)
    if inner is not None:
        return inner
    if answer is not None:
        return "" if _BOX_START.search(answer) else answer
    cut = _ANSWER_TAG.search(text) or _BOX_START.search(text)
    return text.strip() if whole and not cut else ""


# ------------------------------------------------------------------------------------------------------- truths
def truth(solution: Any) -> str:
    """The answer in a `solution` column: `$...$` and tags taken off, numbers written out, a list of one unwrapped.

    RewardError for a solution that no answer can be compared with: null, NaN, blank, several values, a mapping.
    """
    if isinstance(solution, list | tuple) and len(solution) == 1:
        return truth(solution[0])
    if is_missing(solution):
        refuse(solution, "is blank", "the right answer")
    if not isinstance(solution, str | int | float):
        refuse(solution, f"is a {type(solution).__name__}", "one answer, as text or number")
    text = extract(normalise(undollar(_written(solution))))
    if not plain(text):
        refuse(solution, "holds no answer", "the right answer")
    return text


def alternatives(solution: Any) -> list[str]:
    """The truths of a column whose list means "any of these"."""
    if isinstance(solution, list | tuple) and solution:
        return [truth(each) for each in solution]
    return [truth(solution)]


def is_missing(value: Any) -> bool:
    """Null, NaN, blank text, or an empty list or mapping."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def refuse(solution: Any, problem: str, expected: str) -> NoReturn:
    """Raise the RewardError of a truth that cannot be read for certain."""
    shown = repr(solution)
    raise RewardError(
        f"solution {shown if len(shown) <= 100 else shown[:97] + '...'} {problem}; expected {expected}", "solution"
    )


def undollar(text: str) -> str:
    """`$...$` and `$$...$$` taken off where they hold the whole text."""
    text = text.strip()
    for mark in ("$$", "$"):
        inner = text[len(mark) : -len(mark)]
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and "$" not in inner:
            return inner.strip()
    return text


def _written(solution: str | int | float) -> str:
    if isinstance(solution, float) and solution.is_integer():
        return str(int(solution))  # what a column of numbers with gaps makes of 3
    return str(solution)


# --------------------------------------------------------------------------------------------- what is finally said
_STATEMENT = re.compile(
    r"\banswers?\s*(?:(?:is|are|=|:|would be|should be|must be|will be)\s*:?\s*)(?:that\s+)?", re.IGNORECASE
)
_TURNS = re.compile(
    r"\b(?:but|wait|actually|no|however|instead|rather|corrections?|corrected|final|finally|therefore|so|thus|hence|"
    r"first|initially|sorry|mistake|reconsider\w*|second thought)\b",
    re.IGNORECASE,
)
_WORDS_BACK = (
    r"wait|actually|sorry|oops|hmm|corrections?|corrected|scratch that|make that|i mean|(?:or )?rather(?!\s+than)"
    r"|instead(?!\s+of)|on (?:second thoughts?|reflection)|my (?:mistake|bad)"
    r"|let me (?:reconsider|rethink|correct (?:that|it|myself))|i misread[^.;\n]{0,30}"
)
TAKEN_BACK = rf"\b(?:no,?\s+wait|wait,?\s+no|no(?=\s*[,:;.!\u2026\u2014-])|nope|{_WORDS_BACK})\b"
"""What takes back what was said before it: "B, no, C"."""
_TAKEN_BACK = re.compile(TAKEN_BACK, re.IGNORECASE)
_TAKEN_BACK_BUT_NO = re.compile(rf"\b(?:{_WORDS_BACK})\b", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.!?](?=\s|$)|\n|;|,?\s+(?:because|since|as|which|where|given)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|(?<=\n)")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|mathit|mathsf|operatorname|mbox)\s*\{([^{}]*)\}")


def statements(text: str) -> list[tuple[int, str]]:
    """Where "the answer is" stands, and what follows it up to the end of the clause."""
    found = []
    matches = list(_STATEMENT.finditer(text))[-MOST_STATEMENTS:]
    for match, following in zip_longest(matches, matches[1:]):
        end_of_it = following.start() if following else len(text)
        rest = text[match.end() : min(match.end() + 300, end_of_it)]
        end = _CLAUSE_END.search(rest)
        found.append((match.end(), rest[: end.start()] if end else rest))
    return found


def settled(said: Sequence[tuple[int, Any]], text: str) -> Any:
    """The value that statements settle on: the only one, or the last of two after a word that turns ("but", "so").

    Of three the last counts only after a word that takes back ("no, wait"). Else several values, as two side by side,
    are a walk through the choices and settle nothing.
    """
    values = list(dict.fromkeys(value for _, value in said))
    if len(values) < 2:
        return values[0] if values else None
    last = said[-1][1]
    start = next(position for position, value in reversed(said) if value != last)
    turns = _TURNS if len(values) == 2 else _TAKEN_BACK
    return last if turns.search(text, start, said[-1][0]) else None


def corrected(text: str, *, most_words: int = 4, no_is_an_answer: bool = False) -> str:
    """What a text ends on after the last words that take back what it said before: "4" of "3, no, 4"; else all of it.

    Only a short remainder is such a correction: "Wait, 3 of the 5 are red, so ..." goes on with the thought.
    """
    words = _TAKEN_BACK_BUT_NO if no_is_an_answer else _TAKEN_BACK
    for match in reversed(list(words.finditer(text))[-MOST_STATEMENTS:]):
        rest = text[match.end() :].strip(" ,.:;!\u2026\u2014-\n")
        if rest:
            return text[match.end() :].lstrip(" ,.:;!\u2026\u2014\n") if len(rest.split()) <= most_words else text
    return text


def without_questions(text: str) -> str:
    """A question is no answer: the prompt repeated says nothing."""
    if "?" not in text:
        return text
    return "".join(each for each in _SENTENCE_END.split(text) if not each.rstrip("\"'*)! \n").endswith("?"))


def bare(text: str) -> str:
    r"""Marks that only dress a text taken off: `**`, `__`, backticks and `\text{...}`."""
    for _ in range(3):
        text = _TEXT_COMMAND.sub(r" \1 ", text)
    return re.sub(r"\*\*|__|`", "", text.translate(_QUOTES))


def plain(text: str) -> str:
    """For comparing texts: case folded, white space collapsed, final punctuation and quotes taken off."""
    text = unicodedata.normalize("NFC", text).translate(_QUOTES)
    return " ".join(text.split()).strip("\"'`").rstrip(".!,;:").strip("\"'`").casefold()


_QUOTES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT SINGLE QUOTATION MARK}": "'",
                         "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"'})  # fmt: skip


# --------------------------------------------------------------------------------------------------------- JSON
def json_value(text: str) -> Any:
    """The JSON in a text: all of it, the last fenced block, or the last {...} or [...] that parses.

    Values of one kind one after another, on lines or in a numbered list, are a list of them.
    """
    if (fenced := _fences(text)) is not None:
        return fenced
    for candidate in (text, *reversed(_FENCED.findall(text))):
        value = _parse(candidate)
        if isinstance(value, dict | list):
            return value
    if (whole := _loose_in(text)) is not None:
        return whole
    run: list[Any] = []
    end = 0
    for start in [match.start() for match in re.finditer(r"[{\[]", text)][:MOST_STARTS]:
        if start >= end:  # not inside the value found before
            try:
                value, after = json.JSONDecoder().raw_decode(text, start)
            except RecursionError:
                break  # brackets in brackets without end: those inside are no better
            except ValueError:
                continue
            goes_on = run and type(value) is type(run[-1]) and _LISTED.fullmatch(text, end, start)
            run, end = [*run, value] if goes_on else [value], after
    return run if len(run) > 1 else run[0] if run else None


def _loose_in(text: str) -> Any:
    """What stands from the first bracket to the last that closes it, where it is not strictly JSON but nearly so."""
    start = re.search(r"[{\[]", text)
    if start is None:
        return None
    try:
        json.JSONDecoder().raw_decode(text, start.start())
    except (ValueError, RecursionError):
        end = text.rfind("}" if start[0] == "{" else "]")
        return loose(text[start.start() : end + 1]) if end > start.start() else None
    return None


def _fences(text: str) -> list[Any] | None:
    """The values of fences one after another, of one kind and with nothing to say between them."""
    pieces = _FENCED.split(text) if text.count("```") > 3 else []  # what is outside, inside, outside, ...
    values = [_parse(each) for each in pieces[1::2]]
    alike = len(values) > 1 and isinstance(values[0], dict | list) and len({type(each) for each in values}) == 1
    listed = alike and all(_LISTED.fullmatch(each) for each in pieces[2:-1:2])
    return values if listed and any(each != values[0] for each in values) else None


def merged(value: Any) -> Any:
    """`{"a": 1}` and `{"b": 2}` one after another, each with a name of its own, as one mapping; else the value."""
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) and len(each) == 1 for each in value):
        return value
    whole = {key: each for record in value for key, each in record.items()}
    return whole if len(whole) == len(value) else value


def records(value: Any, names: Collection[str] = ()) -> list[Any]:
    """The records of a parsed value: those of a list, one by itself, under one of `names`, or each under a name."""
    if isinstance(value, Mapping):
        under = next((value[name] for name in names if isinstance(value.get(name), Mapping | list)), None)
        if under is not None:
            return records(under, names)
        return list(value.values()) if value and all(isinstance(v, Mapping) for v in value.values()) else [value]
    return list(value) if isinstance(value, list | tuple) else []


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return loose(text)
