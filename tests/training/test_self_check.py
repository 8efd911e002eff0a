"""The first-update self-check: passes on equality, and reads the pattern of a gap."""

import pytest
import torch

from mmrl.errors import SelfCheckError
from mmrl.training.self_check import Tolerance, compare

EXACT = Tolerance(1e-4)
MASK = torch.ones(6, 8, dtype=torch.bool)


def old():
    return -torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def test_equal_log_probs_pass_and_padding_is_ignored():
    new, mask = old(), MASK.clone()
    mask[:, 6:] = False
    new[:, 6:] = 99
    check = compare(old(), new, mask, EXACT)
    assert check.passed
    assert check.actions == 36


def test_rows_sampled_under_a_hint_are_counted_and_not_compared():
    new = old()
    new[1] -= 1
    hinted = torch.tensor([False, True, False, True, False, False])
    check = compare(old(), new, MASK, EXACT, shown=hinted)
    assert check.passed and (check.rows, check.actions, check.excluded) == (4, 32, 2)
    assert "2 sampled under a hint were not compared" in str(check)
    assert not compare(old(), new, MASK, EXACT, shown=~hinted).passed
    assert not compare(old(), new, MASK, EXACT).passed


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda lp: lp.index_fill(0, torch.tensor([2]), -3.0), "only 1 of 6 rollouts differ"),
        (lambda lp: torch.cat([lp[:, :1] - 1, lp[:, 1:]], 1), "off by one"),
        (lambda lp: lp * 2, "temperature"),
        (
            lambda lp: lp + 0.02 * torch.arange(8) ** 2 * torch.tensor([1, -1, 1, -1, 1, -1])[:, None] * 0.1,
            "position ids",
        ),
        (lambda lp: lp + 0.01, "small gap everywhere"),
        (lambda lp: lp.masked_fill(lp > -0.6, float("-inf")), "not finite"),
    ],
)
def test_the_likely_cause_is_read_from_the_pattern(change, cause):
    check = compare(old(), change(old()), MASK, EXACT)
    assert not check.passed
    with pytest.raises(SelfCheckError, match=cause):
        check.raise_if_failed()


def test_below_float32_single_tokens_may_round_and_the_mean_tells():
    coarse = Tolerance.of(torch.bfloat16)
    rounded = old()
    rounded[2, 3] += 0.3
    assert Tolerance.of(torch.float32) == EXACT and not compare(old(), rounded, MASK, EXACT).passed
    assert compare(old(), rounded, MASK, coarse).passed
    assert not compare(old(), old() + 0.05, MASK, coarse).passed, "a gap everywhere is no rounding"
    rounded[2, 3] += 0.9
    assert not compare(old(), rounded, MASK, coarse).passed, "nor is a gap this large"
    assert Tolerance.of(torch.bfloat16, 5e-5) == Tolerance(5e-5)
