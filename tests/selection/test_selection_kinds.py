"""Kinds: the Beta that fits what groups came to, by hand, and what a kind met seldom leans on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.record import Prompt
from mmrl.selection.kinds import Kinds, beta_of
from mmrl.selection.outcomes import Tried

PROMPTS = [Prompt(f"p{i}", [], columns={"level": "fair" if i < 3 else "hard"}) for i in range(4)]


@given(a=st.floats(0.05, 4), b=st.floats(0.3, 3.9))
def test_a_beta_is_found_again_by_its_moments(a, b):
    """Within the limits of its strength: .3 to 8 answers."""
    mean = a / (a + b)
    assert beta_of(mean, mean * (1 - mean) * (a + b) / (a + b + 1)) == pytest.approx((a, b), rel=1e-3)


def test_the_strength_of_a_kind_has_limits():
    assert beta_of(0.5, 1 / 6) == pytest.approx((1, 1))
    assert beta_of(0.5, 0.0) == pytest.approx((0.15, 0.15)), "each prompt always right or always wrong"
    assert beta_of(0.5, 0.25) == pytest.approx((4, 4)), "all prompts alike"


def test_a_kind_leans_on_all_kinds_and_those_on_an_even_belief():
    kinds = Kinds(["level"], 1.0, "here")
    kinds.meet(PROMPTS)
    kinds.observe([Tried(0, 0, 8, 8), Tried(1, 1, 4, 8)], 0)
    # success 1 and 1/2; p (1 - p) without bias 0 and 2/7; two even groups beside them, then two of all beside each kind
    mean, within = (1.5 + 2 * 0.5) / 4, (2 / 7 + 2 / 6) / 4
    assert kinds.beliefs(0)["hard"] == pytest.approx(beta_of(mean, within))
    assert kinds.beliefs(0)["fair"] == pytest.approx(beta_of((1.5 + 2 * mean) / 4, (2 / 7 + 2 * within) / 4))


def test_what_is_not_met_again_fades():
    kinds = Kinds(["level"], 0.5, "here")
    kinds.meet(PROMPTS)
    kinds.observe([Tried(0, 0, 8, 8)], 0)
    assert kinds.known("fair", 2) == pytest.approx((0.25, 0.25, 0.0))
    assert kinds.beliefs(60)["fair"] == pytest.approx((1, 1))
