"""The price of saying the same again."""

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.papers.gazal import ngram_repetition, repeated_share


def test_five_runs_of_which_two_are_different():
    assert repeated_share("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert ngram_repetition(["a b a b a b"], size=2, penalty=0.5) == [pytest.approx(-0.3)]


def test_a_text_that_never_repeats_itself_costs_nothing_whatever_its_length():
    text = " ".join(str(i) for i in range(500))
    assert ngram_repetition([text, "", "two words", f"{text} {text}"]) == [0, 0, 0, pytest.approx(-498 / 998)]


def test_a_price_below_nothing_is_refused():
    with pytest.raises(RewardError, match="penalty=-1"):
        ngram_repetition(["a"], penalty=-1)
