"""Text read off a picture: word and character error rates, edit distance, ANLS.

    wer    1 - word edits / words of the truth, at least 0 (EasyVideoR1; Video-R1 keeps the case)
    cer    1 - character edits / characters of the truth, at least 0
    edit   1 - character edits / characters of the longer
    anls   `edit`, but 0 where it is below .5 (ST-VQA, arXiv 1905.13648)

Several truths mean "any of these": the best counts.
"""

from __future__ import annotations

import re

from mmrl.rewards import answers, dressing
from mmrl.rewards.distances import LONGEST, edits, similarity, tidied
from mmrl.rewards.tasks import UNREAD, Verdict, kind, one_of

METRICS = ("wer", "cer", "edit", "anls")
ANLS_LEAST = 0.5


_TOLD = re.compile(
    r"(?:the|this|it)\b[^\"'\n]{0,60}\b(?:reads?|says?|is|shows?|states?)\s*:?\s*[\"'\u201c\u2018]([^\"\u201d]+)[\"'\u201d\u2019]\.?",
    re.IGNORECASE,
)
"""`The sign says "STOP".`"""
_COLON = re.compile(
    r"(?:here is )?(?:the|this)\b[^\"':\n]{0,40}\b(?:text|sign|label|word|title|image|picture)\b[^\"':\n]{0,30}"
    r"\b(?:reads?|says?|is|are|contains?|shows?)(?: the)?(?: following)?(?: text)?\s*:\s*(.+)",
    re.IGNORECASE | re.DOTALL,
)
"""`The text in the image is: STOP`"""


_LABELLED = re.compile(r"(?:text|transcription|transcript|reading)\s*:\s*[\"\u201c]([^\"\u201d]+)[\"\u201d]\.?", re.I)
"""`Text: "STOP"`; without the quotes the label may stand in the picture."""


_LEADS = (
    re.compile(r"[^\W\d][^\W\d]*(?: [^\W\d]+){0,3}\s*:\s*"),
    re.compile(r"(?:图中|图片中|图像中|上面)?(?:的)?(?:文字|文本|内容|答案)(?:内容)?(?:是|为|:|：)+\s*"),
    re.compile(r"(?:it|(?:the|this|its) [^.:\"\n]{1,60}?) (?:says|reads|is|are|was)\s*:?\s+", re.IGNORECASE),
)
"""`The license plate reads AB 123 CD`, `Text: STOP`."""
_SAYS = re.compile(
    r"[^\"\u201c\u201d\u300c\u00ab\n]{0,60}[\"\u201c\u300c\u00ab]([^\"\u201c\u201d\u300d\u00bb]+)[\"\u201d\u300d\u00bb][.。]?"
)
_ENTITLED = re.compile(r"[^'\u2018\n]{0,60}\s['\u2018]([^'\u2018\u2019]+)['\u2019]\.?|\[([^\[\]]+)\]")
"""A sentence that quotes, `El cartel dice "ALTO"`, and a text in brackets."""
_WIDE = re.compile(r"[\uff10-\uff5a]")


def unfenced(text: str) -> str:
    """A code fence, quotes that hold the whole text, and marks of emphasis taken off."""
    text = text.strip().removeprefix("```text").removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    text = answers.bare(dressing.undressed(text) if text.startswith("{") else text).strip()
    if told := _TOLD.fullmatch(text) or _COLON.fullmatch(text) or _LABELLED.fullmatch(text):
        text = told[1].strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _readings(answer: str) -> list[str]:
    """A text as it stands, and what a sentence says is written there; a label may stand in the picture, too."""
    text = dressing.narrow(unfenced(answer)) if _WIDE.search(answer) else unfenced(answer)
    lead = next((match for form in _LEADS if (match := form.match(text)) and text[match.end() :].strip()), None)
    found = [text, unfenced(text[lead.end() :]) if lead else ""]
    told = _SAYS.fullmatch(text) or _ENTITLED.fullmatch(text)
    return list(dict.fromkeys([*found, next(filter(None, told.groups()))] if told else found))


def error_rates(said: str, right: str) -> dict[str, float]:
    """All four measures of one reading."""
    spoken, true = said.split()[:LONGEST], right.split()[:LONGEST]
    letters, wanted = said[:LONGEST], right[:LONGEST]
    close = similarity(letters, wanted)
    return {
        "wer": max(0.0, 1 - edits(spoken, true) / max(1, len(true))),
        "cer": max(0.0, 1 - edits(letters, wanted) / max(1, len(wanted))),
        "edit": close,
        "anls": close if close >= ANLS_LEAST else 0.0,
    }


@kind(
    "ocr",
    read=answers.alternatives,
    valid=lambda text: bool(unfenced(text)),
    answer="the text as it stands in the picture; a code fence or quotes around it do not matter",
    truth="the text; a list means any of these",
    aliases=("text_recognition", "transcription", "text_spotting", "docvqa", "textvqa"),
)
def ocr(answer: str, right: list[str], *, metric: str = "wer", case: bool = False) -> Verdict:
    """Text read off a picture, by `metric` wer, cer, edit or anls; `case`: capitals count. All four are reported."""
    one_of("metric", metric, METRICS)
    readings = [tidied(each, fold=not case) for each in _readings(answer)]
    rated = []
    for each in right:
        wanted = tidied(unfenced(each), fold=not case)
        for said in filter(None, readings):
            stop = said.endswith(".") and not wanted.endswith(".")  # the full stop of the sentence that answers
            rated.append(error_rates(said[:-1] if stop and said[:-1] else said, wanted))
    if not rated:
        return UNREAD
    parts = max(rated, key=lambda each: each[metric])
    return Verdict(parts[metric], True, parts)
