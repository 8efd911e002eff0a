"""Differences of a potential on steps: they telescope, and do not change which policy is best."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import ConfigError
from mmrl.objective.advantages.parts import table
from mmrl.objective.numerics import later_sum
from mmrl.record import Batch
from mmrl.rollout.robo_dopamine import RoboDopamine, shaped_steps


def batch(progress, reward=(1.0, 0.0), **columns) -> Batch:
    """Two rows of two steps, two actions and one, with a shown column between."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1]]).bool()
    segment = torch.tensor([[0, 0, -1, 1], [0, 0, -1, 1]])
    columns = {name: torch.tensor(values) for name, values in columns.items()}
    return Batch(mask=mask, old_log_probs=torch.zeros(2, 4), reward=torch.tensor(reward),
                 columns={"segment": segment, "progress": torch.tensor(progress), **columns})  # fmt: skip


PROGRESS = [[0.5, 0.5, 0.0, 1.0], [0.25, 0.25, 0.0, 0.0]]


def test_the_worked_numbers():
    kept = RoboDopamine(end=None, outcome=0.0, gamma=0.5, begin=0.25)
    assert kept.make(batch(PROGRESS))["action_reward"].tolist() == [[0, 0, 0, 0], [0, -0.125, 0, -0.25]]
    zero = RoboDopamine(outcome=2.0).make(batch(PROGRESS))["action_reward"]
    assert zero.tolist() == [[0, 0.5, 0, 1.5], [0, 0.25, 0, -0.25]]
    beside = RoboDopamine(weight=0.0, outcome=0.0).make(batch(PROGRESS, action_reward=[[0.0, 1, 0, 2]] * 2))
    assert beside["action_reward"].tolist() == [[0, 1, 0, 2]] * 2, "what an environment gave stays"


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    st.floats(0.5, 1),
    st.floats(-1, 1),
    st.one_of(st.none(), st.just(0.0)),
)
def test_the_sum_telescopes(phi, gamma, begin, end):
    progress, last = torch.tensor([phi], dtype=torch.float64), torch.ones(1, len(phi), dtype=torch.bool)
    made = shaped_steps(progress, last, gamma, begin, end)[0]
    total = sum(gamma**k * float(value) for k, value in enumerate(made))
    assert total == pytest.approx(gamma ** len(phi) * (phi[-1] if end is None else end) - begin, abs=1e-9)


def test_returns_are_those_of_the_outcome_less_the_potential_a_step_begins_in():
    """So that two rollouts that go on from one state are compared by their outcomes alone."""
    given = batch(PROGRESS)
    made = RoboDopamine().make(given)["action_reward"]
    returns = later_sum(table(made, given.columns["segment"], given.mask)[0], 1.0)
    assert returns.tolist() == [[1, 0.5], [0, -0.25]], "outcome 1 and 0; Phi 0, then .5 and .25"
    straight = RoboDopamine(weight=0.0).make(given)["action_reward"]
    assert torch.equal(made.sum(1), straight.sum(1)), "over whole rollouts nothing is paid beside the outcome"


def test_an_unknown_progress_is_refused():
    with pytest.raises(ConfigError, match="row 1 has a step whose `progress` is not a number"):
        RoboDopamine().make(batch([[0.0] * 4, [0.0, float("nan"), 0, 0]]))
    with pytest.raises(ConfigError, match="gamma=0"):
        RoboDopamine(gamma=0.0)
