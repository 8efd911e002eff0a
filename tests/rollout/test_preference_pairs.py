"""Stored pairs are groups, and an ensemble says how sure it is of each."""

import pytest
import torch

from mmrl.errors import ConfigError, DataError
from mmrl.record import Batch, Prompt
from mmrl.rollout.plan import Given
from mmrl.rollout.preference_pairs import PreferencePairs, preference_strength
from mmrl.training.step_metrics import batch_metrics
from tests.rollout.plans import step

NAN = float("nan")


def batch(**components) -> Batch:
    """Two pairs and a third whose rejected answer could not be given; rows in no order."""
    rewards = {name: torch.tensor(values, dtype=torch.float64) for name, values in components.items()}
    return Batch(
        mask=torch.ones(5, 1, dtype=torch.bool), old_log_probs=torch.zeros(5, 1, dtype=torch.float64),
        group=torch.tensor([0, 1, 0, 1, 2]), member=torch.tensor([0, 1, 1, 0, 0]), components=rewards,
        reward=torch.zeros(5, dtype=torch.float64),
    )  # fmt: skip


def test_strength_by_hand():
    """Margins 3 and 1: mean 2, population deviation 1. Margins that agree are as sure as can be."""
    mean, strength = preference_strength(torch.tensor([[3.0, -1, 2], [1.0, 1, 2]], dtype=torch.float64))
    assert mean.tolist() == [2, 0, 2] and strength[:2].tolist() == pytest.approx([2, 0], abs=1e-5)
    assert strength[2] > 1e5


def test_margins_are_the_chosen_one_over_its_partner():
    made = PreferencePairs().make(batch(a=[3.0, 5, 0, 1, 7], b=[2.0, 1, 1, 0, 7]))
    assert made["preferred"].tolist() == [1, 0, 0, 1, 1]
    assert made["preference_margin"].tolist() == pytest.approx([2, 2.5, -2, -2.5, NAN], nan_ok=True)
    assert made["preference_strength"][:4].tolist() == pytest.approx([2, 5 / 3, -2, -5 / 3], abs=1e-5)


def test_a_judge_that_failed_leaves_its_pair_unknown_and_metrics_say_so():
    given = batch(a=[3.0, 5, 0, 1, 7], b=[2.0, NAN, 1, 0, 7])
    given.columns |= PreferencePairs().make(given)
    given.advantage = torch.zeros(5, 1)
    told = batch_metrics(given, torch.zeros(5, 1))
    found = {name.removeprefix("preference/"): v for name, v in told.items() if name.startswith("preference/")}
    assert found == pytest.approx(
        {"strength": 2, "wrong_fraction": 0, "unsure_fraction": 0, "unknown_fraction": 2 / 3}, abs=1e-5
    )


def test_one_model_is_no_ensemble():
    with pytest.raises(ConfigError, match=r"and here are \['a'\]; name another"):
        PreferencePairs().make(batch(a=[0.0] * 5, **{"a/parsed": [1.0] * 5}))
    with pytest.raises(ConfigError, match="2 or more rewards"):
        PreferencePairs(judges=["a"])
    with pytest.raises(ConfigError, match="unknown reward component 'c'"):
        PreferencePairs(judges=["a", "c"]).make(batch(a=[0.0] * 5, b=[0.0] * 5))


def test_a_group_is_the_two_texts_of_a_row():
    strategy = PreferencePairs()
    assert [g.index for g in strategy.ask(step(prompts=3)).given] == [0, 1, 2]
    row = Prompt("p", [], columns={"solution": "red", "rejected": "blue"})
    assert strategy.given(Given("demonstration"), row, None) == ["red", "blue"]
    with pytest.raises(DataError, match="prompt 'p': column 'rejected' holds 0 texts"):
        strategy.given(Given("demonstration"), Prompt("p", [], columns={"solution": "red"}), None)
