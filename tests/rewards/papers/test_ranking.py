"""Lists: items, hits, and the two phases of naming and ranking."""

import math

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.papers.ranking import items_of, ndcg, ranked_items, set_then_rank, wanted


@pytest.mark.parametrize(
    "text",
    ["1. Cat\n2. dog.\n3. Red fox", "- cat\n- dog\n\n- red  fox\n", "cat, dog, red fox", "<answer>cat; Dog; red fox"],
)
def test_items_of_a_list_however_it_is_written(text):
    assert [item for item, _ in items_of(text)] == ["cat", "dog", "red fox"]


def test_a_comma_inside_a_line_of_a_list_is_part_of_its_item():
    assert [item for item, _ in items_of("Paris, Texas\nHeat")] == ["paris, texas", "heat"]
    assert items_of("") == items_of("\n ") == []


def test_the_truth_is_a_list_or_text_of_one():
    assert wanted(["Cat", "dog"]) == wanted('["cat", "dog"]') == wanted("cat, dog") == ["cat", "dog"]
    assert wanted(3) == ["3"]
    for bad in (None, [], " ", {"a": 1}, ["."]):
        with pytest.raises(RewardError):
            wanted(bad)


def test_a_hit_in_the_third_place_stands_on_the_third_item():
    """NDCG: 1 / log2(4) of the 1 that a first place would give."""
    text = "1. cat\n2. cow\n3. dog"
    (made,) = ranked_items([text], [["dog"]])
    assert made["score"] == pytest.approx(0.5)
    assert [text[a:b] for a, b, _ in made["segment"]] == ["1. cat\n", "2. cow\n", "3. dog"]
    assert [value for _, _, value in made["action_reward"]] == [0, 0, 1]


def test_an_item_hits_once_and_only_among_those_asked_for():
    (twice,) = ranked_items(["dog, dog, cat"], [["dog", "cat"]])
    assert [v for *_, v in twice["action_reward"]] == [1, 0, 1]
    assert twice["score"] == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    (cut,) = ranked_items(["cow, dog"], [["dog"]], items=1)
    assert cut["score"] == 0 and [v for *_, v in cut["action_reward"]] == [0, 0]
    assert ndcg([1, 1], 2) == 1 and ndcg([], 0) == 0


def test_coverage_asks_for_no_order_and_ranking_does():
    first, second = "<candidates>dog, cow, cat</candidates> cat, dog", "<candidates>cat, dog, cow</candidates> cow, cat"
    a, b = set_then_rank([first, second], [["cat", "dog"]] * 2)
    assert a["coverage"] == b["coverage"] == 1 and a["ranking"] == 1
    assert b["ranking"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert [first[x:y] for x, y, _ in a["segment"]] == ["<candidates>dog, cow, cat</candidates> ", "cat, dog"]


def test_what_was_not_a_candidate_earns_nothing_in_the_ranking():
    (made,) = set_then_rank(["<candidates>dog</candidates> cat, dog"], [["cat", "dog"]])
    assert made["coverage"] == 0.5 and made["ranking"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_an_open_set_is_all_first_phase_and_naming_everything_stops_helping():
    (made,) = set_then_rank(["cat, dog"], [["cat", "dog"]])
    assert (made["coverage"], made["ranking"]) == (1, 0) and made["segment"] == [[0, 8, 0]]
    (made,) = set_then_rank(["cow, pig, cat"], [["cat"]], most=2)
    assert made["coverage"] == 0
