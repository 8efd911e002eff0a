"""CardRewriter: relevance times what is found."""

import math

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.papers.rewriting import bm25, cardrewriter, check_search, effectiveness, found

DOCUMENTS = ["a cat plays the piano", "a dog swims", "cat videos of the year, cat after cat"]
ROW = {"query": "cta piano", "documents": DOCUMENTS, "relevant": [0]}


def score(text, **options):
    return cardrewriter([text], [ROW["query"]], [ROW["relevant"]], [DOCUMENTS], **options)[0]


def test_bm25_by_hand():
    """One of two documents holds the word once, both of two words: idf log 2, and a tf part of 1."""
    assert bm25("cat", ["cat a", "dog b"]) == [pytest.approx(math.log(1 + 1.5 / 1.5)), 0]
    assert found("cat", DOCUMENTS) == [2, 0] and found("piano cat", DOCUMENTS)[0] == 0
    assert found("fish", DOCUMENTS) == []


def test_places_are_discounted():
    assert effectiveness([2, 0], [0], 10) == pytest.approx(1 / math.log2(3))
    assert effectiveness([0, 0], [0, 1], 2) == pytest.approx(1 / (1 + 1 / math.log2(3))), "found twice counts once"
    assert effectiveness([2, 0], [0], 1) == 0


def test_a_rewrite_is_worth_both_or_nothing():
    good = score("<answer>cat piano</answer>")
    assert good == pytest.approx({"score": 0.5, "relevance": 0.5, "effectiveness": 1})
    assert score("a dog swims")["score"] == 0, "it finds something, which is not what was asked"
    assert score("cta piano")["relevance"] == pytest.approx(1)
    assert score("")["score"] == 0
    assert score("cat", mix="sum", share=0.25)["score"] == pytest.approx(0.75 / math.log2(3))


def test_without_documents_it_says_what_it_wants_and_is_made_ready_all_the_same():
    assert cardrewriter([], [], []) == []
    with pytest.raises(RewardError, match="reads the column documents"):
        cardrewriter(["cat"], ["cta"], [[0]])


def test_your_judge_and_your_search(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def near(completions, query):\n    return [None if c == 'odd' else 0.5 for c in completions]\n"
        "def engine(queries, city):\n    return [[1, 0] if c == 'Rome' else [0] for c in city]\n"
    )
    options = {"relevance": f"{file}:near", "search": f"{file}:engine"}
    got = cardrewriter(["cat", "odd"], ["q", "q"], [[0], [0]], city=["Rome", "Oslo"], **options)
    assert got[0] == pytest.approx({"score": 0.5 / math.log2(3), "relevance": 0.5, "effectiveness": 1 / math.log2(3)})
    assert math.isnan(got[1]["score"]), "what the judge cannot say is not scored"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": " "}, "query is ' '"),
        ({"relevant": []}, r"relevant is \[\]"),
        ({"relevant": [3]}, "names 3; expected places from 0 to 2"),
        ({"documents": None}, "documents is None"),
    ],
)
def test_a_row_in_which_nothing_can_be_found_is_refused(change, said):
    check_search(ROW)
    with pytest.raises(RewardError, match=said):
        check_search({**ROW, **change})
    with pytest.raises(RewardError, match="unknown mix 'times'"):
        check_search(ROW, mix="times")
