"""The reference policy's mean reward, from answers of the policy."""

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.rollout.reference_value import ReferenceValue


def batch(reward, prompt, ratio, **fields):
    """One action a row that the reference says `ratio` times as often as the policy."""
    rows = len(reward)
    apart = torch.tensor([[math.log(r)] for r in ratio], dtype=torch.float64)
    return Batch(mask=torch.ones(rows, 1).bool(), old_log_probs=torch.zeros(rows, 1), reward=torch.tensor(reward),
                 prompt=torch.tensor(prompt), columns={"ref_log_probs": apart}, **fields)  # fmt: skip


def value(strategy, *arguments, **fields):
    return strategy.make(batch(*arguments, **fields))["reference_value"].tolist()


def test_at_the_reference_it_is_the_mean_of_each_prompt():
    assert value(ReferenceValue(), [1.0, 0.0, 1.0, 1.0], [7, 7, 9, 9], [1, 1, 1, 1]) == [0.5, 0.5, 1, 1]


def test_away_from_it_rows_weigh_as_the_reference_would_have_written_them():
    """A policy that is right half the time where the reference is a quarter: weights .5 and 1.5, the mean is .25."""
    assert value(ReferenceValue(), [1.0, 0.0], [7, 7], [0.5, 1.5]) == [0.25, 0.25]
    assert value(ReferenceValue(most=2), [1.0, 0.0], [7, 7], [100.0, 1.0])[0] == pytest.approx(2 / 3), "bounded"


def test_earlier_visits_stay_counted_and_unscored_and_given_rows_say_nothing():
    strategy = ReferenceValue()
    value(strategy, [1.0, 0.0], [7, 7], [1, 1])
    assert value(strategy, [1.0, 1.0], [7, 7], [1, 1]) == [0.75, 0.75]
    other = ReferenceValue()
    other.load_state_dict(strategy.state_dict())
    lost = [float("nan"), 0.0]
    assert value(other, lost, [7, 8], [1, 1], source=torch.tensor([0, 1])) == [0.75, 0.0]
    with pytest.raises(ConfigError, match="at least 1"):
        ReferenceValue(most=0.5)
