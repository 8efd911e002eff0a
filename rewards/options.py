"""The options of a question, from any form a column gives them in, and which of them a truth is.

    ["A cat", "A dog"]            ["A. cat", "B. dog"]            {"A": "cat", "B": "dog"}
    {"label": ["A", "B"], "text": ["cat", "dog"]}                 [{"label": "A", "text": "cat"}, ...]
    "A. cat\\nB. dog"              "(A) cat (B) dog"               '["cat", "dog"]'  (JSON, or Python's repr)

A truth is a letter ("B", "(b)", "B. dog", "Option B"), an option's text ("A dog", "Vitamin A"), or an integer that
counts from 0 (as in ScienceQA and MMLU). One that may mean two options, or none, is refused.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.spelled import DASHES

LETTERS = string.ascii_uppercase
_LABELLED = re.compile(
    r"^\s*[\[(]?\s*([A-Za-z]|\d{1,2}(?!\s*[.:]\d|:\s+\d))\s*(?:[.:)\]]|\)\s*[.:])\s*(.*)$",  # 1.5 and 1:2 are values
    re.DOTALL,
)
_INLINE = re.compile(r"(?:(?<=\s)|(?<=[;,|])|^)\(?([A-Z])(?:\)|[.:](?=\s))\s*")
_LABEL_KEYS = ("label", "key", "id", "letter", "option")
_TEXT_KEYS = ("text", "value", "content", "option_text", "answer")
_FORMS = "a list of texts, {'A': text, ...}, or lines 'A. text'"


@dataclass(frozen=True)
class Options:
    """Labels and texts of the options, in order; no options at all: the letters A to Z, with unknown texts."""

    labels: tuple[str, ...] = tuple(LETTERS)
    texts: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        return bool(self.texts)

    def with_text(self, text: str) -> list[str]:
        """The labels of the options that read like this; where none does, like this but for an article."""
        wanted, texts = comparable(text), list(map(comparable, self.texts))
        if wanted not in texts:
            wanted, texts = _without_article(wanted), list(map(_without_article, texts))
        return [label for label, each in zip(self.labels, texts, strict=False) if each == wanted]


def comparable(text: str) -> str:
    """An option's text for comparing: dollars, dress and final punctuation taken off, case folded."""
    return answers.plain(answers.bare(answers.undollar(answers.normalise(text)))).translate(DASHES)


def _without_article(text: str) -> str:
    return re.sub(r"^(?:an?|the)\s+(?=\w{2})", "", text)


def read_options(column: Any) -> Options:
    """Options of a column; RewardError for one that cannot be read."""
    if hasattr(column, "tolist"):
        column = column.tolist()
    value = _parsed(column) if isinstance(column, str) else column
    if answers.is_missing(value):
        return Options()
    found = _read(value)
    if found is None or len(found) < 2 or len({label for label, _ in found}) != len(found):
        shown = repr(column)
        raise RewardError(f"options {shown[:100]} cannot be read; expected {_FORMS}", "options")
    if any(answers.is_missing(text) for _, text in found):
        raise RewardError(f"options {column!r}: one is blank; expected {_FORMS}", "options")
    return Options(tuple(label for label, _ in found), tuple(text for _, text in found))


def _parsed(text: str) -> Any:
    """A string column as JSON, as a list that Python printed, or as labelled lines."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict | tuple):
            return value
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    starts = list(_INLINE.finditer(text))
    if (
        [match[1] for match in starts] == list(LETTERS[: len(starts)])
        and len(starts) > 1
        and not text[: starts[0].start()].strip()
    ):
        ends = [*(match.start() for match in starts[1:]), len(text)]
        return {m[1]: text[m.end() : end].strip().rstrip(",;|").strip() for m, end in zip(starts, ends, strict=True)}
    for mark in ("|", ";", "\t"):
        if text.count(mark):
            return [part.strip() for part in text.split(mark) if part.strip()]
    return None if not text.strip() else {"unread": text}


def _read(value: Any) -> list[tuple[str, str]] | None:
    if isinstance(value, Mapping):
        lowered = {str(key).lower(): each for key, each in value.items()}
        labels = next((lowered[k] for k in ("label", "labels") if k in lowered), None)
        texts = next((lowered[k] for k in ("text", "texts", "choices", "options") if k in lowered), None)
        if isinstance(texts, list | tuple):
            given = labels if isinstance(labels, list | tuple) else LETTERS[: len(texts)]
            return (
                [(_label(a), _text(b)) for a, b in zip(given, texts, strict=False)]
                if len(given) == len(texts)
                else None
            )
        filled = {key: each for key, each in value.items() if each is not None}  # columnar files fill absent keys
        return [(_label(key), _text(each)) for key, each in filled.items()]
    if not isinstance(value, list | tuple) or len(value) > len(LETTERS):
        return None
    if all(isinstance(each, Mapping) for each in value):
        return _mappings(value)
    if any(isinstance(each, list | tuple | Mapping) for each in value):
        return None
    texts = [_text(each) for each in value]
    matches = [_LABELLED.match(text) for text in texts]
    labels = [match[1].upper() if match else "" for match in matches]
    numbered = [str(i) for i in range(1, len(texts) + 1)]
    if labels in (list(LETTERS[: len(texts)]), numbered) and all(match[2].strip() for match in matches if match):
        return [(label, match[2].strip()) for label, match in zip(labels, matches, strict=True) if match]
    return list(zip(LETTERS, texts, strict=False))


def _mappings(value: Sequence[Mapping]) -> list[tuple[str, str]] | None:
    found = []
    for index, each in enumerate(value):
        text = next((each[key] for key in _TEXT_KEYS if key in each), None)
        label = next((each[key] for key in _LABEL_KEYS if key in each), LETTERS[index])
        if len(each) == 1 and text is None:
            (label, text), *_ = each.items()
        if text is None:
            return None
        found.append((_label(label), _text(text)))
    return found


def _label(value: Any) -> str:
    return str(value).strip().strip("().:").upper()


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


# ------------------------------------------------------------------------------------------------------- truths
def label_in(text: str, options: Options) -> tuple[str, str] | None:
    """(label, what follows it) of a text that is a label, or begins with one and a separator: "B", "(b)", "B. dog"."""
    labels = "|".join(sorted(map(re.escape, options.labels), key=len, reverse=True))
    form = (
        rf"(?i:(?:the\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?[\[({{\"'<]*\s*({labels}"
        rf"|{labels.lower()})\s*[\])}}\"'>.:!;]*"
    )
    if match := re.fullmatch(form, text.strip()):
        return match[1].upper(), ""
    lead = (
        rf"\(\s*({labels}|{labels.lower()})\s*\)[.:]?\s*(.+)|({labels})\s*(?:[.:)\]]"
        rf"|\s[-\u2013\u2014]\s)\s*(.+)|({labels.lower()})[.)]\s*(.+)"
    )
    if match := re.fullmatch(lead, text.strip(), re.DOTALL):
        label, rest = next((match[i], match[i + 1]) for i in (1, 3, 5) if match[i])
        return label.upper(), rest.strip()
    return None


def true_option(solution: Any, options: Any = None) -> tuple[str | None, str]:
    """(label or None, text) of the right option; RewardError for a truth that is not one for certain.

    Without options a truth that has not the form of a letter is a text, and its label None.
    """
    known = read_options(options)
    if isinstance(solution, list | tuple) and len(solution) == 1:
        solution = solution[0]
    if isinstance(solution, float) and solution.is_integer():
        solution = int(solution)
    if isinstance(solution, int) and not isinstance(solution, bool):
        return _by_index(solution, known)
    text = answers.bare(answers.truth(solution)).strip()
    label = label_in(text, known)
    spelled = known.with_text(text)
    if not known.known and re.fullmatch(r"\W*[A-Z](?:\W+(?:(?:and|or)\W+)?[A-Z])+\W*", text):
        answers.refuse(solution, "names several letters", "one letter, or the task `multi_choice`")
    if not known.known:
        whole = label if label and (not label[1] or not text[0].islower()) else None
        return (whole[0], whole[1]) if whole else (None, text)
    if len(spelled) > 1:
        answers.refuse(solution, f"is the text of several options ({', '.join(spelled)})", "a letter")
    if spelled and label and not label[1] and label[0] != spelled[0]:
        answers.refuse(solution, f"is the label of one option and the text of {spelled[0]}", "the letter, as (B)")
    if spelled:
        return spelled[0], text
    if label and (others := known.with_text(label[1])) and label[0] not in others and label[1]:
        answers.refuse(solution, f"has the letter {label[0]} and the text of {others[0]}", "one of them")
    if label:
        return label[0], known.texts[known.labels.index(label[0])]
    answers.refuse(solution, "is none of the options", f"one of {', '.join(known.labels)}, or an option's text")


def _by_index(solution: int, known: Options) -> tuple[str, str]:
    """An integer: a label that is a number, or the text of one, or an index from 0; two readings are refused."""
    if not known.known:
        answers.refuse(solution, "is an index without options", "a letter, or the column `options`")
    if str(solution) in known.labels:
        return str(solution), known.texts[known.labels.index(str(solution))]
    spelled = known.with_text(str(solution))
    inside = 0 <= solution < len(known.labels)
    meant = {*spelled, *([known.labels[solution]] if inside else [])}
    if len(meant) != 1:
        why = "may be an option's text or an index" if meant else f"is no index of {len(known.labels)} options (from 0)"
        answers.refuse(solution, why, "a letter, or an option's text")
    label = meant.pop()
    return label, known.texts[known.labels.index(label)]
