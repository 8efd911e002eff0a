"""PROPS' idea for a few choices: what came too seldom comes next."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.selection.deficit import low_discrepancy_choice


def test_what_came_too_seldom_comes_next():
    assert low_discrepancy_choice(torch.tensor([3, 1]), torch.tensor([0.5, 0.5])) == 1


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.9, 0.1, 0.0]])
def test_counts_stay_within_one_of_their_shares(shares):
    p, counts = torch.tensor(shares), torch.zeros(len(shares))
    for n in range(1, 101):
        counts[low_discrepancy_choice(counts, p)] += 1
        assert ((counts - n * p).abs() <= 1 + 1e-5).all()


def test_shares_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="of sum 1"):
        low_discrepancy_choice(torch.zeros(2), torch.tensor([0.5, 0.6]))
