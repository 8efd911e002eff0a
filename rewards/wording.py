"""How an answer is worded: diverse in itself, near a reference, near a person's critique."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.clip import TINY, load_scorer
from mmrl.rewards.registry import checks, resolve, reward

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[.!?\n]+")


def words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def ngrams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Runs of `n` of the words; of fewer words all of them as one, of none nothing."""
    return [tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, min(len(found), 1)))]


def sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.split(text) if _WORD.search(part)]


def cosine(a: Counter, b: Counter) -> float:
    """Of two counts; 0 where one is empty."""
    size = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(a[k] * b[k] for k in a) / size if size else 0.0


def diversity(text: str, n: int = 2) -> dict[str, float]:
    """Signals in [0, 1]: distinct n-grams, distinct words, entropy of words, distance of adjacent sentences."""
    found = words(text)
    if not found:
        return dict.fromkeys(("distinct_ngrams", "distinct_words", "word_entropy", "sentence_distance"), 0.0)
    grams = ngrams(found, n)
    shares = [count / len(found) for count in Counter(found).values()]
    entropy = -sum(p * math.log(p) for p in shares) / math.log(len(found)) if len(found) > 1 else 0.0
    counts = [Counter(words(sentence)) for sentence in sentences(text)]
    apart = [1 - cosine(a, b) for a, b in pairwise(counts)]
    return {
        "distinct_ngrams": len(set(grams)) / len(grams),
        "distinct_words": len(shares) / len(found),
        "word_entropy": entropy,
        "sentence_distance": sum(apart) / len(apart) if apart else 0.0,
    }


@reward(
    "text_diversity",
    method="multirole_r1",
    paper="MultiRole-R1, arXiv 2507.20187",
    formula="mean of distinct n-grams, distinct words, word entropy / log n, distance of adjacent sentences",
    confidence="partly",
)
def text_diversity(completions, *, n: int = 2) -> list[float]:
    """How varied a text is in itself, in [0, 1]; preset `multirole_r1` weighs it .1 beside accuracy at .9."""
    scores = [diversity(completion, n) for completion in completions]
    return [sum(signals.values()) / len(signals) for signals in scores]


@reward(
    "semantic_reward",
    check=checks(answers.truth),
    isolated=False,
    paper="Shaping explanations by a semantic reward, 2025",
    formula="max(cos(enc(answer), enc(reference)), 0), or (1 + cos)/2; 0 for an empty answer",
    confidence="partly",
)
def semantic_reward(
    completions,
    solution,
    *,
    model: str = TINY,
    pretrained: str | None = None,
    device: str | None = None,
    shifted: bool = False,
) -> list[float]:
    """Cosine of the answer's and the reference's text embeddings, by any text tower open_clip can load."""
    texts = [answers.extract(completion) for completion in completions]
    cosines = load_scorer(model, pretrained, device).text_cosines(texts, [answers.truth(s) for s in solution])
    return [
        ((1 + c) / 2 if shifted else max(c, 0.0)) if t.strip() else 0.0 for c, t in zip(cosines, texts, strict=True)
    ]


def f1(given: Sequence[str], wanted: Sequence[str], match: Callable[[str, str], bool]) -> float:
    """Of two lists of claims, each matched at most once."""
    free, hits = list(wanted), 0
    for claim in given:
        partner = next((other for other in free if match(claim, other)), None)
        if partner is not None:
            free.remove(partner)
            hits += 1
    return 2 * hits / (len(given) + len(wanted)) if given or wanted else 1.0


def alike(first: str, second: str, threshold: float = 0.5) -> bool:
    """Whether two claims share enough words: the cosine of their counts."""
    return cosine(Counter(words(first)), Counter(words(second))) >= threshold


@reward(
    "rm_nlhf",
    check=checks(answers.truth),
    paper="RM-NLHF: reward models from natural-language feedback, 2026",
    formula="F1 of the critique's claims against a person's; 0 if the preference is wrong",
    confidence="reconstructed",
)
def rm_nlhf(completions, solution, critique, *, threshold: float = 0.5) -> list[float]:
    """A judge's critique against a person's (column `critique`): claims are sentences; 0 for a wrong verdict."""
    scores = []
    for completion, verdict, reference in zip(completions, solution, critique, strict=True):
        right = answers.plain(answers.extract(completion)) == answers.plain(answers.truth(verdict))
        written = sentences(
            completion[: completion.lower().rfind("<answer>")] if "<answer>" in completion else completion
        )
        scores.append(f1(written, sentences(reference), lambda a, b: alike(a, b, threshold)) if right else 0.0)
    return scores


def cut(text: str, most: int | None, side: str) -> str:
    """At most this many characters, taken off the right or the left."""
    if side not in ("left", "right"):
        raise RewardError(f"side is {side!r}; expected 'left' or 'right'")
    if most is None or len(text) <= most:
        return text
    return text[:most] if side == "right" else text[-most:]


@reward(
    "polar",
    check=checks(answers.truth),
    isolated=False,
    paper="POLAR: pre-trained policy discriminators, 2025; code InternLM/POLAR, reward_func.py",
    formula="R(prompt, reference, candidate) of a reward model, unbounded",
)
def polar(
    prompts, completions, solution, *, scorer: str, max_length: int | None = None, cut_from: str = "right"
) -> list[float]:
    """A reward model that compares with a reference: `scorer` names its function of prompts, references, candidates."""
    judge = resolve(scorer).function
    candidates = [cut(completion, max_length, cut_from) for completion in completions]
    values = [float(v) for v in judge(list(prompts), [answers.truth(s) for s in solution], candidates)]
    if len(values) != len(candidates):
        raise RewardError(f"polar: {scorer} returned {len(values)} scores for {len(candidates)} candidates")
    return values
