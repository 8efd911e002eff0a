"""What stands around a short answer and is no part of it: full-width signs, fences, emphasis, "The answer is"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrl.rewards import answers

ANSWER_KEYS = ("answer", "final_answer", "result", "output", "prediction", "value", "label", "text")
LONGEST = 500  # characters of a text that is a short answer and its dress
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    ord(wide): narrow for wide, narrow in zip("　、。【】\u2212", " ,.[]-", strict=True)
}
_FENCE = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)
_MATHS = re.compile(r"^\s*\\[(\[](.*?)\\[)\]]\.?\s*$", re.DOTALL)
_LABEL = re.compile(
    r"\s*(?:(?:the )?(?:final |correct )?answer\s*(?:is|:|=)\s*:?|(?:正确)?答案\s*(?:是|为|:)\s*:?"
    r"|(?:答え|回答|정답|ответ|r[ée]ponse|respuesta|risposta|resposta|antwort)\s*:)\s*",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\w)")


def narrow(text: str) -> str:
    """Full-width letters, digits and signs as the plain ones: `（１，２）` as `(1,2)`."""
    return text.translate(_WIDE)


def undressed(text: str) -> str:
    r"""A short answer by itself: `red` of "The answer is **red**.", `{"answer": "red"}`, `\text{red}`, a fence of it.

    A longer text, and one that states several answers, is left as it is.
    """
    if len(text) > LONGEST:
        return text
    fenced = _FENCE.fullmatch(text)
    inner = fenced[1] if fenced else text
    found = answers.json_value(inner) if inner.strip().startswith("{") else None
    if isinstance(found, Mapping) and (named := alone(found)) is not None:
        return str(named)
    inner = _MATHS.sub(r"\1", answers.undollar(answers.bare(inner)))
    if label := _LABEL.match(inner):
        return answers.undollar(inner[label.end() :]) if not answers.statements(inner[label.end() :]) else text
    return inner


_NAMED = re.compile(r"\s*(?:caption|description|title|transcription|transcript)\s*:\s*(?=\S)", re.IGNORECASE)
_QUOTED = re.compile(
    r"\s*(?:here (?:is|'s) )?(?:an? |the |my |suggested )*(?:caption|description)[^:\"\n]{0,40}:\s*"
    r"[\"\u201c](.+)[\"\u201d]\s*",
    re.I | re.S,
)


def readings(text: str) -> list[str]:
    """A free text as it stands, and without what may only announce it: `Caption: a dog`, `{"caption": "a dog"}`.

    A label may also be part of what is written, so that the better of the readings counts.
    """
    found = [text]
    value = answers.json_value(text) if text.strip().startswith(("{", "```")) else None
    if isinstance(value, Mapping) and len(value) == 1 and isinstance(alone_text := next(iter(value.values())), str):
        found.append(alone_text)
    plain = _NAMED.sub("", answers.bare(text), count=1)
    quoted = _QUOTED.fullmatch(plain)
    found += [quoted[1] if quoted else plain, undressed(text)]
    return list(dict.fromkeys(each for each in found if each.strip()))


def alone(found: Mapping[str, Any]) -> Any:
    """The value under the one name of a mapping that says "answer"; None where it has none, or several."""
    named = [value for key, value in found.items() if str(key).strip().lower().replace(" ", "_") in ANSWER_KEYS]
    return named[0] if len(named) == 1 and isinstance(named[0], str | int | float) else None


def same(said: str, right: str) -> bool:
    """Whether two texts are the same name, with or without an article: `The United States`."""
    return _ARTICLE.sub("", answers.plain(said)) == _ARTICLE.sub("", answers.plain(right))


def says(text: str, right: str) -> bool:
    """Whether one clause says it in so many words: "the largest share is Germany" for a plain text `germany`."""
    said = answers.plain(text)
    if not said.endswith(right) or re.search(r"[;\n]|\.\s|\b(?:not|or|nor|neither|either)\b|n't\b", said):
        return False
    lead = said[: -len(right)]
    verb = re.fullmatch(r".{1,120}?(?:\b(?:is|are|was|were)|:) (?:the |an? )?", lead)
    return bool(verb) and len(re.findall(r"\b(?:is|are|was|were)\b|:", lead)) == 1
