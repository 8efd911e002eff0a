"""Which denoising steps are actions."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.policies.generation.sde import schedule, stochastic_steps
from mmrl.policies.generation.steps import TrainSteps, check_group_size, plan_steps, training_steps, window_start
from mmrl.randomness import Key

POSSIBLE = stochastic_steps("flow_sde", schedule(10, 3), 0.7)


def plan(members: int = 6, same_noise: bool = False, step: int = 0, possible=POSSIBLE, **choice):
    ids = ["a"] * members
    return plan_steps(TrainSteps(**choice), possible, ids, torch.arange(members), Key(0, step), same_noise)


def test_all_leaves_out_the_last_step():
    made = plan()
    assert made.trained.tolist() == [[True] * 9 + [False]] * 6
    assert torch.equal(made.stochastic, made.trained)
    assert made.seed.tolist() == list(range(6)) and plan(same_noise=True).seed.tolist() == [0] * 6


def test_fraction_trains_a_share_of_each_rollout_and_draws_noise_everywhere():
    made = plan(members=50, select="fraction", fraction=0.6)
    assert made.trained.sum(1).tolist() == [5] * 50  # int(.6 * 9)
    assert made.stochastic[:, :9].all() and not made.stochastic[:, 9].any()
    assert len({tuple(row) for row in made.trained.tolist()}) > 20
    assert torch.equal(made.trained, plan(members=50, select="fraction", fraction=0.6).trained)


def test_fraction_that_trains_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"at least 0\.111"):
        plan(select="fraction", fraction=0.1)


def test_window_is_one_draw_for_all_rollouts_of_a_training_step():
    starts = set()
    for step in range(40):
        made = plan(step=step, select="window", size=3, high=5)
        assert made.trained.sum(1).tolist() == [3] * 6
        assert torch.equal(made.trained, made.trained[:1].expand(6, -1))
        starts.add(int(made.first[0]))
    assert starts == {0, 1, 2}


def test_progressive_window_slides_wraps_and_is_never_empty():
    """S = 6, w = 2, every step: [0,1], [1,2], ... [4,5], [0,1]."""
    every = torch.ones(6, dtype=torch.bool)
    choice = {"select": "window", "size": 2, "order": "progressive", "every": 1}
    windows = [plan(1, step=s, possible=every, **choice).trained[0].nonzero().squeeze(1).tolist() for s in range(6)]
    assert windows == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 1]]


def test_progressive_window_stays_clear_of_the_ode_step_and_keeps_its_pace():
    choice = TrainSteps(select="window", size=4, order="progressive", every=25, stride=1)
    starts = [window_start(choice, POSSIBLE, Key(0, s)) for s in range(0, 175, 25)]
    assert starts == [0, 1, 2, 3, 4, 5, 0]
    assert window_start(choice, POSSIBLE, Key(0, 24)) == 0


@pytest.mark.parametrize("options", [{"size": 10}, {"size": 3, "low": 7}, {"size": 2, "high": 10}])
def test_a_window_that_does_not_fit_is_refused(options):
    with pytest.raises(ConfigError, match="does not fit the trainable steps"):
        plan(select="window", **options)


def test_one_enumerates_seed_step_branch():
    made = plan(members=36, select="one", branches=2)
    assert made.trained.sum(1).tolist() == [1] * 36
    assert made.first.tolist() == [k for _ in range(2) for k in range(9) for _ in range(2)]
    assert made.seed.tolist() == [0] * 18 + [1] * 18
    assert torch.unique(made.branch, return_counts=True)[1].tolist() == [2] * 18


def test_group_sizes_that_leave_a_step_short_are_refused_with_the_nearest():
    choice = TrainSteps(select="one", branches=6)
    check_group_size(choice, POSSIBLE, 216)
    with pytest.raises(ConfigError, match="choose 54"):
        check_group_size(choice, POSSIBLE, 48)
    check_group_size(TrainSteps(), POSSIBLE, 7)


def test_steps_besides_the_window_are_trained_too():
    """BranchGRPO-Mix: splits are stochastic wherever the window stands."""
    made = plan(select="window", size=2, low=5, high=7, also=(0, 3))
    assert made.trained.tolist() == [[True, False, False, True, False, True, True, False, False, False]] * 6
    assert torch.equal(made.stochastic, made.trained)
    with pytest.raises(ConfigError, match="step 9 cannot be trained"):
        plan(select="window", also=(0, 9))


def test_a_window_that_hurries_stays_less_at_quiet_steps():
    """MixGRPO's exp_decay: tau0 = 5, k = .1, c0 = 13 stays 5 at c = 13 and ceil(2.483) = 3 at c = 20."""
    choice = TrainSteps(select="window", size=1, order="progressive", every=5, pace="exp_decay")
    assert [training_steps(choice, c, 0, 23) for c in (0, 13, 20)] == [5, 5, 3]
    every = torch.ones(24, dtype=torch.bool)
    starts = [window_start(choice, every, Key(0, step)) for step in range(200)]
    assert starts == sorted(starts[:106]) + starts[:94], "70 steps up to 13, then 5 5 4 4 4 3 3 3 3 2"
    assert starts.count(0) == 5 + 5 and starts[:106].count(20) == 3


def test_a_window_that_hurries_in_a_straight_line():
    choice = TrainSteps(select="window", size=2, order="progressive", every=9, pace="decay", least=1)
    assert [training_steps(choice, c, 0, 4) for c in range(5)] == [9, 7, 5, 3, 1]
    starts = [window_start(choice, torch.ones(6, dtype=torch.bool), Key(0, step)) for step in range(26)]
    assert starts == [0] * 9 + [1] * 7 + [2] * 5 + [3] * 3 + [4] + [0]
