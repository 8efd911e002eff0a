"""Free text against a reference: the mean of ROUGE-1, -2 and -L, as in Video-R1 and EasyVideoR1.

Their scorer stems words by Porter's rules; ours takes off the endings of plurals and verbs only. Two texts that share
nothing but words such as "the" are worth 0, and so is a text that goes on for long: precision falls. Without words to
stand on, a question in the answer says nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise

from mmrl.rewards import answers, dressing
from mmrl.rewards.distances import f1, longest_common, overlap_f1, shares_content, words
from mmrl.rewards.tasks import UNREAD, Verdict, kind

SHORT = 10  # characters of a truth that is answered by itself alone, not by a text that holds it
MOST_WORDS = 1500
_ENDING = re.compile(r"(?:(?<=[^aeiou\W])(?:ies)|(?<=[sxz])es|(?<=[cs]h)es|(?<=[^su\W])s|(?<=\w{3})ing|(?<=\w{3})ed)$")


_DENIED = re.compile(r"(?:it(?: is|'s| was) )?(?:not|no|isn't)\b[^,.;]{1,30}\.?", re.IGNORECASE)


def stem(word: str) -> str:
    """`dogs` and `jumped` as `dog` and `jump`."""
    if len(word) <= 3:
        return word
    cut = _ENDING.sub(lambda m: "y" if m[0] == "ies" else "", word)
    return cut[:-1] if len(cut) > 3 and cut[-1] == cut[-2] and cut[-1] not in "lsz" else cut.removesuffix("e")


def rouge(said: str, right: str) -> dict[str, float]:
    """F1 of words, of word pairs, and of the longest common subsequence."""
    first, second = ([stem(w) for w in words(text)[:MOST_WORDS]] for text in (said, right))
    if not shares_content(words(said), words(right)) and not shares_content(first, second):
        return dict.fromkeys(("rouge_1", "rouge_2", "rouge_l"), 0.0)
    return {
        "rouge_1": overlap_f1(first, second),
        "rouge_2": overlap_f1(list(pairwise(first)), list(pairwise(second))),
        "rouge_l": f1(longest_common(first, second), len(first), len(second)),
    }


def judged(answer: str, right: list[str]) -> Verdict:
    """The best of several references."""
    rated = []
    for reading in dressing.readings(answer):
        said = answers.without_questions(answers.bare(reading))
        rated += [_rated(said, each) for each in right] if words(said) else []
    if not rated:
        return UNREAD
    score, parts = max(rated, key=lambda pair: pair[0])
    return Verdict(score, True, parts)


def _rated(said: str, right: str) -> tuple[float, dict[str, float]]:
    parts = rouge(said, right)
    short = len(right) <= SHORT
    if short and _DENIED.fullmatch(said.strip()) and not re.search(r"\b(?:not|no)\b", right, re.IGNORECASE):
        return 0.0, dict.fromkeys(parts, 0.0)
    return 1.0 if short and dressing.same(said, right) else sum(parts.values()) / 3, parts


@kind(
    "open_ended",
    read=answers.alternatives,
    valid=lambda text: bool(words(text)),
    answer="a text; its questions do not count",
    truth="the reference; a list means any of these",
    aliases=("free_form", "free_text", "video_qa", "open_ended_qa", "short_answer", "description", "explanation"),
)
def open_ended(answer: str, right: list[str]) -> Verdict:
    """Free text: mean of ROUGE-1, ROUGE-2 and ROUGE-L against the reference; 1 for a short reference said exactly."""
    return judged(answer, right)


@kind(
    "caption",
    read=answers.alternatives,
    valid=lambda text: bool(words(text)),
    answer="a text",
    truth="the reference; a list means any of these",
    aliases=("captioning", "image_captioning", "video_captioning", "dense_caption"),
)
def caption(answer: str, right: list[str], *, model: str | None = None, pretrained: str | None = None) -> Verdict:
    """A caption: cosine of its embedding with the reference's, by the text tower `model`; ROUGE without one.

    model, pretrained  as of `clip_score`; a caption that shares no meaningful word with the reference is worth 0
    """
    found = judged(answer, right)
    if model is None or found.score == 0:
        return found
    from mmrl.rewards.clip import load_scorer

    near = load_scorer(model, pretrained).text_cosines([answer] * len(right), right)
    close = min(1.0, max(0.0, *near)) if near else 0.0
    return Verdict(close, True, {**found.parts, "embedding": close})
