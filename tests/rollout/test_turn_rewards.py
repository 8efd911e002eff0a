"""What turns are worth once the outcome is known."""

import torch

from mmrl.objective.advantages.parts import table
from mmrl.record import Batch
from mmrl.rollout.turn_rewards import TurnRewards, last_of_segments


def batch(**columns):
    """Two rows of two turns, two actions and one, with a shown column between; the first is right."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1]]).bool()
    segment = torch.tensor([[0, 0, -1, 1], [0, 0, -1, 1]])
    worth = torch.tensor([1.0, 0.0])
    made = {name: torch.tensor(values) for name, values in columns.items()}
    return Batch(mask=mask, old_log_probs=torch.zeros(2, 4), reward=worth, success=worth,
                 columns={"segment": segment, **made})  # fmt: skip


def test_the_outcome_stands_on_the_last_action_beside_what_the_environment_gave():
    given = [[0.0, -0.5, 0.0, 0.0], [0.0, 0.25, 0.0, 0.0]]
    made = TurnRewards(outcome=2.0).make(batch(action_reward=given))["action_reward"]
    assert made.tolist() == [[0, -0.5, 0, 2], [0, 0.25, 0, 0]]
    assert TurnRewards(outcome=2.0).make(batch())["action_reward"].tolist() == [[0, 0, 0, 2], [0, 0, 0, 0]]


def test_a_plan_pays_once_in_a_rollout_that_is_right():
    plans = batch(tag=[[1, 1, -1, 2], [1, 1, -1, 1]])
    made = TurnRewards(planning=1.0).make(plans)["action_reward"]
    assert made.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert table(made, plans["segment"], plans.mask)[0].tolist() == [[1, 0], [0, 0]], "a turn is worth its sum"


def test_the_last_action_of_each_segment():
    assert last_of_segments(batch()).tolist() == [[False, True, False, True]] * 2
