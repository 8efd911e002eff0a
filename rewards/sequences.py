"""Reading an order of things: `C, A, B`, `3 > 1 > 2`, `[3, 1, 2]`, `213456`, `(b) -> (a) -> (c)`."""

from __future__ import annotations

import re
import unicodedata
from itertools import combinations
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.languages import in_english

LONGEST = 2000
_ARROW = re.compile(r"\\(?:to|rightarrow|Rightarrow|longrightarrow|succ|prec|gt|lt)(?![a-zA-Z])")
MOST = 100
_BETWEEN = re.compile(
    r"\s*(?:,|;|\||[-=]{1,3}>|[\u2192\u21d2\u27a1\u27f6\u2794\u279c\u227a\u227b]|>|<|\bthen\b|\bfollowed by\b"
    r"|(?:\bwhich\s+)?(?:\b(?:comes|happens|occurs|is)\s+)?\bbefore\b|(?:\bwhich\s+)?\bprecedes\b"
    r"|\band (?:then|finally)\b|\band\b|\n|\s-\s)+\s*",
    re.I,
)
_SHORT = re.compile(r"[(\[]?\w{1,2}[)\]]?(?:\s*-\s*[(\[]?\w{1,2}[)\]]?|\s*[(\[]\w{1,2}[)\]])+")
"""`1-2-3`, `(b)-(a)-(c)`, `(C) (A) (B)`."""
_ORDER = r"(?:order|sequence|arrangement|permutation)"
_LEAD = re.compile(
    rf"^(?:[^,;:\n]{{0,60}}\b{_ORDER}\s*(?:is\s*:?|=|:)|(?:the )?(?:(?:correct|right|final|chronological|temporal"
    rf"|proper|true|original|following|event) )?{_ORDER}\b)\s*",
    re.IGNORECASE,
)
_LIST = re.compile(r"^\s*(?:(?:(?:step|position|place|slot|rank)\s*)?\d+\s*[.):]|[-*\u2022])\s+", re.IGNORECASE)
_TURN = re.compile(
    r"^(?:(?:and|first(?:ly)?|second(?:ly)?|third(?:ly)?|fourth|fifth|sixth|seventh|eighth"
    r"|\d+(?:st|nd|rd|th)|then|next|after that|finally|last(?:ly)?|comes)\b\s*[,:]?\s*"
    r"(?:(?:comes?|happens|occurs|is|we see|we have)\s+(?=\S))?)+",
    re.IGNORECASE,
)
_DRESS = re.compile(
    r"^(?:(?:event|step|clip|segment|frame|image|picture|option|scene|piece|tile|patch)\s+)?[(\[]?\s*(.+?)\s*[)\]]?[.:]?$",
    re.I,
)


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_PLACES = {name: i for i, name in enumerate(_ORDINALS)}
_PLACES |= {name: i for i, name in enumerate(("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"))}
_ROW = re.compile(
    r"\s*(?:row\s*\d+\s*[:.)-]\s*)?[\[(|]?\s*(\d+(?:\s*[,|]\s*|\s+)\d+(?:(?:\s*[,|]\s*|\s+)\d+)*)\s*[\])|]?[,;]?", re.I
)
"""`Row 1: 2 1`, a row of a grid of pieces."""
_FREE = ("next", "in between", "between", "in the middle", "middle")  # places that the others leave
_PLACED = re.compile(
    r"(?:with\s+|(?:the )?(?:video|clip|sequence) shows\s+)?(.+?)\s*[\s:]\s*"
    r"(?:(?:comes|happens|occurs|is|goes|takes place)\s+)?(?:at\s+)?(?:the\s+)?"
    rf"\(?({'|'.join((*_PLACES, *_FREE))}|last|end|beginning|start)\)?"
    r"(?:\s+(?:event|one|step|clip|frame|item|of all))?\.?", re.IGNORECASE
)  # fmt: skip
"""`C comes first`, `A in between`, `C is the first event`."""
_CALLED = re.compile(r"^(?:events?|steps?|clips?|segments?|frames?|images?|pieces?|answer)\s*:\s*(?=\S)", re.IGNORECASE)
_RANKED = re.compile(r"\s*([A-Za-z])\s*[:=]\s*(\d{1,2})\s*")
"""`A: 2`, of items that say their places."""
_LED = [
    (re.compile(
        r"(?:(?:then|and)\s+)?(?:(?:it|the (?:video|clip|sequence|scene|order))\s+)?"
        rf"(?:{verbs})\s+with\s+(.+)", re.IGNORECASE), rf"\1 {place}")
    for verbs, place in (("starts|begins|opens", "first"), ("continues|proceeds|goes on", "next"),
                         ("ends|finishes|concludes|closes", "last"))
]  # fmt: skip
"""`starts with C` as `C first`."""
_CLAUSE = re.compile(r"[.;\n]\s*(?=\S)|,?\s+(?:and|while)(?:\s+then)?\s+|,\s*(?:then\s+)?")
_SIDED = re.compile(
    r"\s*(.{1,80}?)\s+(?:(?:comes|happens|occurs|is|goes|takes place)\s+)?"
    r"(?:(?:right|immediately|directly|just)\s+)?(before|after|precedes|follows)\s+(.{1,80}?)\s*\.?\s*", re.IGNORECASE
)  # fmt: skip
"""`C happens before A`, `A comes after C`."""
_NUMBERED = re.compile(r"(?:^|[\s,;])(\d{1,2})(?:[.)]\s*|:\s*(?=[A-Za-z]))")
_SENTENCES = re.compile(r"[;,]\s*(?:and\s+|then\s+)?|\.\s+|\s+and\s+(?:then\s+)?")
_LABELLED = re.compile(r"(?:^|(?<=[\s,;:]))[(\[]([A-Za-z]|\d{1,2})[)\]]\s+(?=[^\W\d_]{2})")
_LETTERED = re.compile(r"\s*(?:\d+[.)]\s*)?[(\[]?([A-Z])[.):\]]\s+\w{2}.*")


def order(text: str) -> list[str]:
    """The items of an answer in order, folded for comparing; [] where there is no order."""
    text = unicodedata.normalize("NFKC", dressing.narrow(text[:LONGEST]))  # as in circled digits
    text = answers.undollar(answers.bare(answers.without_questions(_ARROW.sub(" > ", in_english(text)))))
    if (rest := answers.corrected(text, most_words=MOST)) != text and len(found := order(rest)) > 1:
        return found
    value = answers.json_value(text)
    if value is not None:
        return order_in(value)
    said = answers.statements(text)
    if said:
        text = said[-1][1]
    text = _CALLED.sub("", _LEAD.sub("", text.strip()).strip())
    if _SHORT.fullmatch(text):
        return [folded(each) for each in re.findall(r"\w{1,2}", text)]
    if labels := _labels(text) or _ranked(text):
        return labels
    if chained := _chained(text):
        return chained
    text = text.strip("[](){}").rstrip(".")
    if re.fullmatch(r"\d{3,}|[A-Z]{2,}", text):
        return list(text.casefold())
    lines = [_LIST.sub("", line) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(_ROW.fullmatch(line) for line in lines):
        return [item for line in lines for item in re.findall(r"\d+", _ROW.fullmatch(line)[1])]  # type: ignore[index]
    parts = lines if len(lines) > 1 else _BETWEEN.split(text)
    clauses = [each for each in _SENTENCES.split(text) if each.strip()]
    if len(lines) == 1 and len(clauses) > 1 and all(_PLACED.fullmatch(_led(each)) for each in clauses):
        parts = clauses
    if len(parts) == 1 and len(text.split()) > 1 and all(len(each) <= 2 for each in text.split()):
        parts = text.split()
    return [folded(part) for part in _placed([_led(part) for part in parts if part.strip()])][: MOST + 1]


def _ranked(text: str) -> list[str]:
    """The items of `A: 2, B: 3, C: 1` by their places, where each place is taken once."""
    ranked = [_RANKED.fullmatch(each) for each in re.split(r"[,;\n]", text) if each.strip()]
    places = {int(each[2]): each[1].casefold() for each in ranked if each}
    whole = len(ranked) > 1 and all(ranked) and sorted(places) == list(range(1, len(ranked) + 1))
    return [places[place] for place in sorted(places)] if whole else []


def _labels(text: str) -> list[str]:
    """The items of `1) A 2) B`, and the labels of `(C) a man enters, (A) he sits` or of lines `C. a man enters`."""
    numbers = [int(each) for each in _NUMBERED.findall(text)]
    if "\n" not in text and len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1)) and text[:1] == "1":
        return [folded(each.strip(" ,;")) for each in _NUMBERED.split(text)[2::2]]
    labels = _LABELLED.findall(text)
    if len(labels) > 1 and _LABELLED.match(text):
        return [each.casefold() for each in labels]
    lines = [_LETTERED.fullmatch(line) for line in text.splitlines() if line.strip()]
    return [each[1].casefold() for each in lines if each] if len(lines) > 1 and all(lines) else []


def _chained(text: str) -> list[str]:
    """The items of `C happens before A, and B comes after A` where they leave one order; else []."""
    sides = [_SIDED.fullmatch(each) for each in _CLAUSE.split(text) if each.strip()][: MOST + 1]
    if not all(sides) or (len(sides) == 1 and sides[0] and sides[0][2].lower() not in ("after", "follows")):
        return []
    before: set[tuple[str, str]] = set()
    for side in sides:
        if side is None or re.search(r"\b(?:before|after|precedes|follows|not)\b", side[1] + " | " + side[3], re.I):
            return []
        one, other = folded(side[1]), folded(side[3])
        before.add((one, other) if side[2].lower() in ("before", "precedes") else (other, one))
    left, found = {item for pair in before for item in pair}, []
    while left:
        first = [item for item in left if not any(b == item and a in left for a, b in before)]
        if len(first) != 1:
            return []  # two may come first, or each has one before it
        found += first
        left -= {first[0]}
    return found


def _led(part: str) -> str:
    for pattern, placed in _LED:
        part = pattern.sub(placed, part.strip()) if pattern.fullmatch(part.strip()) else part
    return part


def _placed(parts: list[str]) -> list[str]:
    """The parts by the places they name, `C first, A second`; none where such a place is another than their own."""
    told = [_PLACED.fullmatch(part.strip()) for part in parts]
    if not any(told):
        return parts
    here = list(range(len(parts)))
    named = [_place(match[2].lower(), len(parts)) if match else i for i, match in enumerate(told)]
    free = iter(sorted(set(here) - {place for place in named if place is not None}))
    places = [next(free, -1) if place is None else place for place in named]
    if sorted(places) != here or (not all(told) and places != here):
        return []
    at = sorted(zip(places, parts, told, strict=True), key=lambda each: each[0])
    return [match[1] if match else part for _, part, match in at]


def _place(word: str, count: int) -> int | None:
    """The place that a word names among so many; None for one that takes what the others leave."""
    if word in ("beginning", "start"):
        return 0
    return count - 1 if word in ("last", "end") else None if word in _FREE else _PLACES[word]


def order_in(value: Any) -> list[str]:
    """The items of a parsed list, or of the only list in a mapping."""
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list | str)]
        return (order(lists[0]) if isinstance(lists[0], str) else order_in(lists[0])) if len(lists) == 1 else []
    if isinstance(value, list | tuple) and value and all(isinstance(each, list | tuple) for each in value):
        value = [item for row in value for item in row]  # the rows of a grid
    if not isinstance(value, list | tuple) or any(isinstance(each, dict | list) or each is None for each in value):
        return []
    return [folded(str(each)) for each in value][: MOST + 1]


def folded(item: str) -> str:
    """`(B)`, `Event b` and `finally B` as `b`; `3.0` as `3`."""
    text = answers.plain(item)
    text = _TURN.sub("", text) or text
    match = _DRESS.match(text)
    text = match[1] if match else text
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def true_order(solution: Any) -> list[str]:
    """RewardError for fewer than two items, or one that comes twice."""
    found = order_in(solution) if isinstance(solution, dict | list | tuple) else order(answers.truth(solution))
    if len(found) < 2 or len(set(found)) != len(found) or len(found) > MOST:
        answers.refuse(solution, "is no order", "every item once, as in ['C', 'A', 'B'], 'C, A, B' or '312'")
    return found


def is_permutation(found: list[str], right: list[str]) -> bool:
    return sorted(found) == sorted(right)


def pair_share(found: list[str], right: list[str]) -> float:
    """Share of the pairs that stand in the right order."""
    at = {item: i for i, item in enumerate(found)}
    pairs = list(combinations(right, 2))
    return sum(at[a] < at[b] for a, b in pairs) / len(pairs)


def displacement(found: list[str], right: list[str]) -> float:
    """1 - sum of |position - true position| over its largest value, floor(n^2 / 2) (VideoSSR's jigsaw)."""
    at = {item: i for i, item in enumerate(found)}
    off = sum(abs(at[item] - i) for i, item in enumerate(right))
    return 1 - off / (len(right) ** 2 // 2)
