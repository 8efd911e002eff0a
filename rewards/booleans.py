"""Reading yes or no: "yes", "true", "1" and "no", "false", "0", as words of their own.

"not true" is no, "not false" is yes. A "no" that belongs to a noun ("no idea") says nothing, but for "there is no".
"""

from __future__ import annotations

import re
from typing import Any

from mmrl.rewards import answers, dressing

_YES = frozenset(
    ("yes", "true", "1", "y", "t", "是", "是的", "对", "正确", "はい", "예", "네", "oui", "sí", "ja", "да")
)
_NO = frozenset(
    (
        "no",
        "false",
        "0",
        "n",
        "f",
        "否",
        "不",
        "不是",
        "不对",
        "错误",
        "いいえ",
        "아니요",
        "아니오",
        "non",
        "nein",
        "нет",
    )
)
_WORD = re.compile(r"\b(yes|yeah|yep|true|correct|no|nope|false|incorrect)\b", re.IGNORECASE)
_POSITIVE = frozenset(("yes", "yeah", "yep", "true", "correct"))
_NOT = re.compile(r"(?:\bnot|n't|\bnever|\bneither|\bcannot)\s+(?:\w+\s+)?$", re.IGNORECASE)
OF_A_NOUN = re.compile(
    r"\s+(?!(?:it|there|they|he|she|this|that|the|i|we|you|because|since|as|and|or|but|is)\b)\w",
    re.IGNORECASE,
)
_THERE_IS = re.compile(r"(?:\bthere\s*(?:is|are|'s|was|were))\s+$", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:cannot|can't|can not|unsure|unclear|not sure|don't know|do not know|no idea|maybe|perhaps"
    r"|whether|either|otherwise|unknown|wrong to say)\b",
    re.I,
)
_TRUE_THAT = re.compile(
    r"\bit(?:'s| is)\s+(?:not\s+)?(?:true|false|correct|incorrect)(?= that\b(?!.*\b(?:but|however|yet)\b))",
    re.IGNORECASE | re.DOTALL,
)
_LEADING = re.compile(r"\W*(yes|no|true|false)\b\s*(?:[,.;:!\n\u2013\u2014-]|$)", re.IGNORECASE)


def boolean(text: str) -> bool | None:
    """Yes or no; a text that says both, or doubts, says neither, unless it states one of them as "the answer"."""
    text = answers.without_questions(answers.bare(dressing.narrow(text))).strip()
    whole = answers.plain(text).strip("()[]\u3002")
    if whole in _YES | _NO:
        return whole in _YES
    if whole in ("1.0", "0.0"):
        return whole == "1.0"
    if _DOUBT.search(text):
        return None
    rest = answers.corrected(text, no_is_an_answer=True)
    if rest != text and (value := _said(rest)) is not None:
        return value
    if said := answers.statements(text):
        read = [(place, value) for place, rest in said if (value := _said(rest)) is not None]
        if read:
            return answers.settled(read, text)
    if (leading := _LEADING.match(text)) and not _LEADING.match(text[leading.end() :]):
        value, rest = leading[1].lower() in _POSITIVE, text[leading.end() :]
        opposed = re.search(r"(?:^|[,.;!]|\b(?:or|and|but))\s*(yes|no|true|false)\b(?!\s+\w)", rest, re.IGNORECASE)
        return value if not opposed or (opposed[1].lower() in _POSITIVE) == value else None
    return _said(text[: claim.end()] if (claim := _TRUE_THAT.search(text)) else text)


def _said(text: str) -> bool | None:
    """What the words of a clause say where they agree."""
    if re.fullmatch(r"\W*[01]\W*", text):
        return "1" in text
    found = set()
    for match in _WORD.finditer(text):
        word, before = match[1].lower(), text[max(match.start() - 40, 0) : match.start()]
        if word == "no" and OF_A_NOUN.match(text, match.end()) and not _THERE_IS.search(before):
            continue
        found.add((word in _POSITIVE) != bool(_NOT.search(before)))
    return found.pop() if len(found) == 1 else None


def true_boolean(solution: Any) -> bool:
    """RewardError for a truth that is neither yes nor no."""
    text = answers.truth(solution)
    value = boolean(text)
    if value is None:
        answers.refuse(solution, "is neither yes nor no", "yes or no (also true, false, 1, 0)")
    return value
