"""CardRewriter: a rewritten search query is worth something if it still asks the same and finds what was looked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl import plugins
from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers
from mmrl.rewards.papers.ranking import ndcg
from mmrl.rewards.registry import resolve, reward, score_of, takes
from mmrl.rewards.wording import cosine, words

MIXES = ("product", "sum")
K1, B = 1.2, 0.75
"""Of BM25: how soon a word that is said again counts no more, and how much long documents are discounted."""


def bm25(query: str, documents: Sequence[str]) -> list[float]:
    """The score of each document by its words that the query names (Robertson and Zaragoza 2009), 0 without any."""
    counts = [Counter(words(text)) for text in documents]
    lengths = [sum(each.values()) for each in counts]
    mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
    scores = [0.0] * len(counts)
    for word in set(words(query)):
        holding = sum(word in each for each in counts)
        rare = math.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5))
        for i, each in enumerate(counts):
            if each[word]:
                scores[i] += rare * each[word] * (K1 + 1) / (each[word] + K1 * (1 - B + B * lengths[i] / mean))
    return scores


def found(query: str, documents: Sequence[str]) -> list[int]:
    """Places of the documents that BM25 finds for a query, best first; those without a word of it are not found."""
    scores = bm25(query, documents)
    return sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: -scores[i])


def effectiveness(places: Sequence[int], relevant: Sequence[int], top: int) -> float:
    """nDCG of the first `top` places, against all relevant ones in front."""
    right = set(relevant)
    hits = [float(place in right and place not in places[:k]) for k, place in enumerate(places[:top])]
    return ndcg(hits, min(top, len(right)))


def check_search(row: Mapping[str, Any], *, search: str = "", relevance: str = "", mix: str = "product", **_: Any):
    """RewardError for a row in which nothing can be found, or for a judge or a search that is not there."""
    if mix not in MIXES:
        raise RewardError(f"cardrewriter: {unknown('mix', mix, MIXES)}")
    if answers.is_missing(row.get("query")):
        raise RewardError(f"query is {row.get('query')!r}; expected what was searched before it was rewritten", "query")
    documents, relevant = row.get("documents"), row.get("relevant")
    if not isinstance(relevant, list | tuple) or not relevant:
        raise RewardError(f"relevant is {relevant!r:.80}; expected a list of places of documents, from 0", "relevant")
    if not search:
        if not isinstance(documents, list | tuple) or not all(isinstance(text, str) for text in documents):
            raise RewardError(f"documents is {documents!r:.80}; expected a list of texts", "documents")
        if wrong := [i for i in relevant if not isinstance(i, int) or not 0 <= i < len(documents)]:
            raise RewardError(
                f"relevant names {wrong[0]!r}; expected places from 0 to {len(documents) - 1}", "relevant"
            )
    else:
        plugins.load(search, "cardrewriter's search")
    if relevance:
        resolve(relevance)


@reward(
    "cardrewriter",
    isolated=False,
    check=check_search,
    paper="CardRewriter, arXiv 2510.10095",
    formula="relevance x effectiveness, or their weighted sum; effectiveness = nDCG@k of what the rewrite finds",
    confidence="reconstructed",
)
def cardrewriter(
    completions: Sequence[str], query: Sequence[str], relevant: Sequence[Sequence[int]],
    documents: Sequence[Sequence[str]] | None = None, *, prompts: Any = None, relevance: str = "", search: str = "",
    top: int = 10, mix: str = "product", share: float = 0.5, **columns: Any,
) -> list[dict[str, float]]:  # fmt: skip
    """A rewritten query: that it asks what the first one asked, times how well it finds; both are reported.

    relevance  a registered reward such as `judge`, or file.py:function, of the rewrite, in [0, 1]; none: the cosine of
               the words of both queries
    search     file.py:function: (queries, **columns) -> for each the places of what it finds, best first; none: BM25
               over the row's `documents`
    top        places that count
    mix        product: both are needed; sum: `share` of relevance, the rest effectiveness

    Columns: `query`, what was typed; `relevant`, places of what should be found; `documents`, texts. The rewrite is
    what stands in the answer's tag, else all of it. Source: the paper's abstract (a reward that balances relevance and
    retrieval effectiveness); measures and mix are ours.
    """
    rewrites = [answers.extract(text) for text in completions]
    given = {"query": query, "relevant": relevant, **columns}
    given |= {k: v for k, v in (("documents", documents), ("prompts", prompts)) if v is not None}
    near = _relevance(relevance, rewrites, given)
    if search:
        places = _called(plugins.load(search, "cardrewriter's search"), (rewrites,), given)
    elif documents is None and completions:
        raise RewardError("cardrewriter reads the column documents, or takes options: {search: file.py:function}")
    else:
        places = [found(text, texts) for text, texts in zip(rewrites, documents or (), strict=True)]
    scores = []
    for like, at, right in zip(near, places, relevant, strict=True):
        finds = effectiveness(at, right, top)
        score = like * finds if mix == "product" else share * like + (1 - share) * finds
        scores.append({"score": score, "relevance": like, "effectiveness": finds})
    return scores


def _relevance(name: str, rewrites: Sequence[str], columns: Mapping[str, Any]) -> list[float]:
    """Of each rewrite; what a judge cannot say is NaN, and leaves its row unscored."""
    if not name:
        pairs = zip(rewrites, columns["query"], strict=True)
        return [cosine(Counter(words(new)), Counter(words(old))) for new, old in pairs]
    said = _called(resolve(name).function, (), {"completions": list(rewrites), **columns})
    return [math.nan if (value := score_of(each)) is None else value for each in said]


def _called(function: Any, positional: tuple, columns: Mapping[str, Any]) -> list[Any]:
    """A function with those columns that it names."""
    found = list(function(*positional, **{k: v for k, v in columns.items() if takes(function, k)}))
    size = len(columns["query"])
    if len(found) != size:
        raise ValueError(f"{getattr(function, '__name__', function)!r} gave {len(found)} answers for {size} queries")
    return found
