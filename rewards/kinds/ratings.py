"""Ratings: how good a picture or clip is, on a scale, and which of two is better.

`quality` is a bell around the mean opinion score, exp(-d^2 / 2 s^2) (VQAThinker, arXiv 2508.06051: s = .5 on 1 to 5); a
rating outside the scale is none. Its answers are the column `predicted_score` for stage functions.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mmrl.rewards import answers, dressing
from mmrl.rewards.languages import in_english
from mmrl.rewards.numbers import number
from mmrl.rewards.numeric import true_number
from mmrl.rewards.tasks import UNREAD, Verdict, kind

SCORES = ("score", "rating", "quality", "overall", "quality_score", "overall_score", "overall_quality",
          "final_score", "mos", "answer")  # fmt: skip
_SCALE = re.compile(
    r"\bon an? (?:(?:quality|rating|likert) )?scale (?:from|of|between) \d+ ?(?:to|-|\u2013|and|through) ?\d+(?:,|:)?",
    re.IGNORECASE,
)
_OVERALL = re.compile(
    r"\b(?:overall|final)(?: (?:quality|score|rating|quality score))?\s*(?::|=|\bis\b|(?<=overall) )\s*"
    r"(\d+(?:\.\d+)?)(?![\d.]|\s*(?:/|-|\bto\b|\bor\b|\bout\b))",
    re.I,
)
"""`Sharpness: 4, noise: 3. Overall: 3.5`"""
_OUT_OF = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/|out of)\s*(\d+(?:\.\d+)?)")


def rating(text: str) -> float | None:
    """The number an answer rates with: `3.5`, `3.5/5`, `{"score": 3.5}`."""
    value = answers.json_value(text)
    text = _SCALE.sub("", in_english(text))
    if overall := list(_OVERALL.finditer(text)):
        return float(overall[0][1]) if len({float(each[1]) for each in overall}) == 1 else None
    if isinstance(value, dict):
        named = next((value[k] for k in SCORES if isinstance(value.get(k), int | float | str)), None)
        return number(str(named)) if named is not None and not isinstance(named, bool) else None
    if (match := _OUT_OF.search(text)) and not _OUT_OF.search(text, match.end()):
        text = text[: match.start(2) - 1].rstrip(" /").removesuffix("out of") + text[match.end() :]
    return number(text)


def bell(predicted: float, right: float, width: float) -> float:
    """1 where both are equal, .61 one width apart."""
    return math.exp(-((predicted - right) ** 2) / (2 * width**2))


@kind(
    "quality",
    read=lambda solution: true_number(solution)[0],
    valid=lambda text: rating(text) is not None,
    answer='a rating: `3.5`, `3.5/5`, `{"score": 3.5}`; one outside the scale is none',
    truth="the mean opinion score",
    aliases=("quality_score", "iqa", "vqa_score", "mos", "image_quality", "video_quality", "aesthetic_score"),
)
def quality(answer: str, right: float, *, width: float = 0.5, low: float = 1.0, high: float = 5.0) -> Verdict:
    """A rating: exp(-d^2 / 2 width^2) of its distance d from the true score, on a scale from `low` to `high`."""
    found = rating(answer)
    scale = _OUT_OF.search(answer)
    if found is None or not low <= found <= high or (scale and float(scale[2]) != high):
        return UNREAD
    return Verdict(bell(found, right, width))


FIRST = ("1", "a", "first", "left", "one", "former", "1st")
SECOND = ("2", "b", "second", "right", "two", "latter", "2nd")
TIES = ("0", "tie", "equal", "same", "both", "neither", "equally good", "c", "draw", "no difference")
_THING = r"(?:images?|videos?|responses?|answers?|options?|pictures?|clips?|captions?|assistant|model|candidate)"
TIE = 3
_SIDES = {name: side for side, names in enumerate((FIRST, SECOND, TIES), 1) for name in names}
_ONE = (
    r"(?:(?:image|video|response|answer|option|picture|clip|caption|assistant|model|candidate)\s*\(?(?:1|2|a|b)\)?"
    r"|(?:the )?(?:first|second|left|right)(?: (?:image|video|response|answer|one|picture|clip|caption))?"
    r"|(?-i:\b[AB](?=\s+(?:is|was|looks|seems|wins|has)\b)))"
)
_BETTER = re.compile(
    rf"(?<!\bthan )\b({_ONE})"
    rf"(?:\bthan {_ONE}|(?!{_ONE}|\bnot\b|n't\b|\bless\b|\bwhile\b|\bbut\b)[^.;\n]){{0,60}}?"
    r"\s+(?:(?:is|looks|was|seems|appears)\s+"
    r"(?:(?:clearly|much|slightly|overall|the) )*"
    r"(?:better|best|preferred|preferable|superior|more \w+|winner|of (?:higher|better) quality)\b"
    r"|wins\b|has (?:the )?(?:higher|better) (?:overall |visual |image |video )?quality\b)",
    re.IGNORECASE,
)
"""`Image B looks sharper and is better overall`."""
_WORSE = re.compile(
    rf"\b({_ONE})\s+(?:(?:is|looks|was|seems)\s+(?:(?:clearly|much|slightly|overall) )*"
    r"(?:worse|inferior|less \w+|not as \w+)\b|loses\b|falls short\b)",
    re.IGNORECASE,
)
"""`Image 2 is worse than image 1`, `Image 2 is not as good`: the other one is better."""
_BEATS = re.compile(
    rf"\b({_ONE})\s+(?:(?:clearly|slightly|easily) )?(?:beats|outperforms|surpasses|outclasses|exceeds)\s+{_ONE}",
    re.IGNORECASE,
)
_HEDGED = re.compile(
    r"\b(?:perhaps|maybe|unclear|unsure|not sure|whether|some (?:would|might|may)|one could|hard to (?:say|tell)"
    r"|(?:cannot|can't|can not|could not|couldn't) (?:say|tell|decide|judge|determine)|depends|if|unless|otherwise)\b",
    re.IGNORECASE,
)
"""A verdict that is not given."""
_DENIED = re.compile(r"(?:\bnot|n't|\bnever|\bcannot|\bhardly)\b[^.,;\n]{0,30}$", re.IGNORECASE)
_DISMISSED = re.compile(rf"^(?:not {_ONE}\s*,\s*(?:but )?(?=\S)|{_ONE}\?\s*no[,.:]?\s+(?=\S))", re.IGNORECASE)
"""`Not image 1, image 2`, `Image 1? No, image 2.`"""
_CONCLUDED = re.compile(r"(?:[.;,\n]\s*)(?:so|thus|therefore|hence),?\s+([^.;,\n]{1,40})\.?\s*$", re.IGNORECASE)
_BRACKETED = re.compile(r"\[\[\s*([^\[\]\n]{1,30}?)\s*\]\]")
RATED = (("score_1", "score_2"), ("score_a", "score_b"), ("1", "2"), ("A", "B"))
_PREFERRED = re.compile(
    r"\b(?:prefer|choose|pick|select|favou?r)\s+((?:the )?(?:first|second)|"
    r"(?:image|video|response|answer|option|picture|clip|caption)\s*(?:1|2|a|b))\b",
    re.IGNORECASE,
)
_EQUAL = re.compile(
    rf"\b(?:both|they|the two|{_ONE} and {_ONE})\b[^.]{{0,40}}?(?<!\bnot )"
    r"\b(?:equal(?:ly)?|the same|identical|similar|tied)\b"
    r"|\b(?:it's|it is|this is|they) (?:a )?(?:tied?|draw)\b|\bneither\b[^.;,]{0,30}\b(?:better|preferred|superior)\b",
    re.IGNORECASE,
)
_SIDE = rf"(?:{_THING}\s*)?[(\[]?(1|2|a|b)[)\]]?"
_COMPARED = re.compile(rf"{_SIDE}\s*(>{{1,3}}|<{{1,3}}|=|\u2248|\u227b|\u227a)\s*{_SIDE}", re.IGNORECASE)
_SCORED = re.compile(
    rf"{_THING}\s*(1|2|a|b)\s*[:=]\s*(\d+(?:\.\d+)?)(?:\s*/\s*\d+)?[\s,;]+(?:and )?{_THING}\s*(1|2|a|b)\s*[:=]\s*"
    r"(\d+(?:\.\d+)?)(?:\s*/\s*\d+)?\.?", re.IGNORECASE
)  # fmt: skip
_HEADED = re.compile(
    r"^\s*(?:the |my |final )*"
    r"(?:winner|verdict|better|preferred|preference|choice|judge?ment|decision)"
    rf"(?: (?:{_THING}|one|choice|option))?\s*(?:is|[:=])\s*:?\s*",
    re.I,
)
CHOSEN = ("preference", "better", "winner", "choice", "chosen", "answer")


def side(text: str) -> int | None:
    """1 for the first, 2 for the second, 3 for a tie; None for an answer that says none or several."""
    value = answers.json_value(text)
    if isinstance(value, dict):
        for keys in RATED:
            both = [value.get(key) for key in keys]
            if all(isinstance(each, int | float) for each in both):
                return 3 if both[0] == both[1] else 1 if both[0] > both[1] else 2
        named = next((value[k] for k in CHOSEN if value.get(k) is not None), None)
        return side(str(named)) if named is not None else None
    text = in_english(dressing.narrow(text)).strip()
    text = answers.bare(answers.without_questions(_DISMISSED.sub("", text)))
    verdicts = {_whole(each) or _compared(each) for each in _BRACKETED.findall(text)}
    if verdicts:
        return verdicts.pop() if len(verdicts) == 1 else None
    lines = text.strip().splitlines()
    text = lines[-1] if len(lines) > 1 and _HEADED.match(lines[-1]) else text
    text = _HEADED.sub("", text)
    whole = _whole(text) or _compared(text.strip(" []().\n"))
    if whole:
        return whole
    if (concluded := _CONCLUDED.search(text)) and (whole := _whole(concluded[1])):
        return whole
    found = _sides(text, _BETTER, _PREFERRED, _BEATS) | {3 - each for each in _sides(text, _WORSE)}
    if found and any(_HEDGED.search(each) for each in _verdicts(text)):
        return None
    found |= {TIE} if _EQUAL.search(text) else set()
    said = {s for _, rest in answers.statements(text) if (s := _whole(rest))}
    found |= said
    return found.pop() if len(found) == 1 else None


def _sides(text: str, *patterns: re.Pattern[str]) -> set[int]:
    """The sides that sentences of these forms name, but where they are denied."""
    stated = [m for each in patterns for m in each.finditer(text)]
    named = [m[1].lower() for m in stated if not _DENIED.search(text, max(0, m.start() - 40), m.start())]
    sides = {_whole(re.sub(r"\b(?:picture|clip|caption|one)\b", "image", name)) for name in named}
    return {each for each in sides if each}


def _verdicts(text: str) -> list[str]:
    """The sentences that say which is better."""
    forms = (_BETTER, _PREFERRED, _BEATS, _WORSE)
    return [each for each in re.split(r"(?<=[.!;\n])\s+", text) if any(form.search(each) for form in forms)]


def _whole(text: str) -> int | None:
    """Of `2`, `Image 2`, `the second image`, `(B)`, `the left one`."""
    name = " ".join(re.sub(r"[\[\](){}]", " ", answers.plain(text)).split()).removeprefix("the ")
    return _SIDES.get(re.sub(rf"^{_THING} (?=\w+$)|(?<=\w) (?:{_THING}|one)$", "", name))


def _compared(text: str) -> int | None:
    """Of `A > B`, `[[B>>A]]`, `A = B`, and of both scores, `Image 1: 3.5, Image 2: 4`."""
    if match := _COMPARED.fullmatch(text):
        first, sign, second = _whole(match[1]), match[2][0], _whole(match[3])
        better, worse = (first, second) if sign in ">\u227b" else (second, first)
        return None if first == second else TIE if sign in "=\u2248" else better if worse else None
    if match := _SCORED.fullmatch(text):
        scores = {_whole(match[1]): float(match[2]), _whole(match[3]): float(match[4])}
        return None if len(scores) < 2 else TIE if scores[1] == scores[2] else max(scores, key=scores.__getitem__)
    return None


def true_side(solution: Any) -> int:
    """RewardError for a truth that prefers neither, and is no tie."""
    found = side(answers.truth(solution)) if not isinstance(solution, bool) else None
    if found is None:
        answers.refuse(solution, "prefers neither", "1, 2 or tie (also A, B, first, second)")
    return found


@kind(
    "preference",
    read=true_side,
    valid=lambda text: side(text) is not None,
    answer='`1`, `A`, `Image 1`, "the first is better", `A > B`, `{"preference": 1}`, `tie`, or both scores as '
    '`{"score_1": 3, "score_2": 4}`',
    truth="1, 2 or tie, in the same words",
    aliases=("pairwise", "pairwise_preference", "critic_preference", "llava_critic", "llava", "critic", "comparison"),
)
def preference(answer: str, right: int) -> Verdict:
    """Which of two is better: 1 for the truth's side."""
    found = side(answer)
    return UNREAD if found is None else Verdict(float(found == right))
