"""Worked numbers of the group baselines."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective, explain
from mmrl.objective.advantages.group import (
    discounted_returns,
    dr_grpo,
    grpo,
    gui_libra,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
)
from mmrl.objective.groups import group_std
from mmrl.record import Batch

NAN = float("nan")


def of(rewards: list[float], group: list[int] | None = None, lengths: list[int] | None = None, **fields) -> Batch:
    rows = len(rewards)
    lengths = lengths or [1] * rows
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return Batch(
        mask=mask, old_log_probs=torch.zeros(mask.shape, dtype=torch.float64),
        reward=torch.tensor(rewards, dtype=torch.float64), group=torch.tensor(group or [0] * rows), **fields,
    )  # fmt: skip


def close(values: torch.Tensor, expected: list, atol: float = 1e-5) -> bool:
    return torch.allclose(values, torch.tensor(expected, dtype=values.dtype), atol=atol)


def test_grpo():
    assert close(grpo(of([1, 0, 0, 1])), [0.866024, -0.866024, -0.866024, 0.866024])
    assert close(grpo(of([1, 0, 0, 0])), [1.499997, -0.499999, -0.499999, -0.499999])
    assert close(grpo(of([1, 1, 1])), [0, 0, 0])


@pytest.mark.parametrize("size", [3, 7, 8, 24])
@pytest.mark.parametrize("reward", [0.1, 0.35, 0.7, 0.9])
def test_equal_rewards_are_worth_nothing_whatever_their_mean_is_rounded_to(reward, size):
    """Summed in float32 most of these miss their mean by as much as their deviation: with an eps of 1e-8, .7 or so."""
    batch = of([reward] * size + [0.0, 1.0], [0] * size + [1, 1])
    batch.reward = batch.reward.float()
    found = grpo(batch, eps=1e-8)
    assert found[:size].eq(0).all() and found[-1] > 0
    assert dr_grpo(batch)[:size].eq(0).all()
    assert group_std(batch.reward, batch.group)[:size].eq(0).all()


def test_grpo_by_population_batch_or_no_deviation():
    assert close(grpo(of([1, 0, 0, 1]), ddof=0), [1, -1, -1, 1])
    assert close(grpo(of([1, 0, 0, 1]), std="none"), [0.5, -0.5, -0.5, 0.5])
    rewards = [1.0, 0.0, 4.0, 0.0]
    spread = torch.tensor(rewards).double().std()
    assert close(grpo(of(rewards, [0, 0, 1, 1]), std="batch"), [0.5 / spread, -0.5 / spread, 2 / spread, -2 / spread])


def test_grpo_refuses_an_unknown_deviation():
    with pytest.raises(ConfigError, match="'group', 'batch' or 'none'"):
        grpo(of([1, 0]), std="rows")


def test_the_eps_of_trl_and_of_verl_differ_where_rewards_hardly_do():
    batch = of([1e-4, 0.0, 0.0, 1e-4])
    assert grpo(batch, eps=1e-4)[0] < 0.4 < 0.8 < grpo(batch, eps=1e-6)[0]


def test_dr_grpo():
    assert close(dr_grpo(of([1, 0, 0, 1])), [0.5, -0.5, -0.5, 0.5])


def test_rloo():
    advantage = rloo(of([1, 0, 0, 0]))
    assert close(advantage, [1, -1 / 3, -1 / 3, -1 / 3])
    assert advantage.sum().abs() < 1e-12


def test_rloo_over_the_deviation_of_the_others():
    """The others of the first row are 0, 0, 4: mean 4/3, deviation sqrt(16/3); of the last 1, 0, 0."""
    advantage = rloo(of([1, 0, 0, 4]), std="others")
    assert close(advantage[:1], [(1 - 4 / 3) / (16 / 3) ** 0.5])
    assert close(advantage[3:], [(4 - 1 / 3) / (1 / 3) ** 0.5])
    assert close(rloo(of([1, 0, 0, 0]), std="others")[:1], [1]), "others that do not differ divide nothing"


def test_unscored_members_leave_the_baseline():
    assert close(grpo(of([1, 0, NAN, 0, 1])), [0.866024, -0.866024, 0, -0.866024, 0.866024])
    assert close(rloo(of([1, 0, NAN])), [1, -1, 0])


def test_a_group_of_one_leaves_the_loss():
    batch = of([1, 0, 1], [0, 0, 5])
    ready = explain({"advantage": "grpo"}, batch, batch.old_log_probs)
    assert ready.batch.trained.tolist() == [True, True, False]
    assert ready.weights[2].sum() == 0


def test_gui_libra_shrinks_negatives_on_hard_prompts():
    assert close(gui_libra(of([1, 0, 0, 0])), [1.499997, -0.437499, -0.437499, -0.437499])
    assert close(gui_libra(of([1, 1, 1, 0])), grpo(of([1, 1, 1, 0])).tolist())
    assert close(gui_libra(of([0, 0, 0])), [0, 0, 0])


def test_reinforce_plus_plus_whitens_over_tokens():
    advantage = reinforce_plus_plus(of([1, 0], [0, 1], lengths=[3, 1]))
    assert close(advantage, [[0.5, 0.5, 0.5], [-1.5, 0, 0]])


def test_reinforce_plus_plus_discounts_late_rewards():
    mask = torch.tensor([[True, True, False, True]])
    rewards = torch.tensor([[0.0, 0, 0, 1]])
    assert close(discounted_returns(rewards, mask, 0.5), [[0.25, 0.5, 0, 1]])


def test_reinforce_plus_plus_with_a_kl_in_the_reward():
    batch = of([1, 0], [0, 1], lengths=[2, 2])
    batch.columns["ref_log_probs"] = torch.tensor([[-0.1, -0.2], [0, 0]], dtype=torch.float64)
    returns = torch.tensor([1 - 0.5 * 0.3, 1 - 0.5 * 0.2, 0, 0], dtype=torch.float64)
    expected = (returns - returns.mean()) / returns.std()
    assert torch.allclose(reinforce_plus_plus(batch, kl=0.5).flatten(), expected, atol=1e-6)


def test_the_baseline_form_centres_in_the_group_first():
    batch = of([3, 1, 10, 10], [0, 0, 1, 1])
    advantage = reinforce_plus_plus_baseline(batch)[:, 0]
    assert close(advantage, [1.224745, -1.224745, 0, 0], atol=1e-4)


def test_a_batch_without_rewards_says_so():
    batch = Batch(mask=torch.ones(2, 1), old_log_probs=torch.zeros(2, 1), columns={"rewards": torch.zeros(2)})
    with pytest.raises(ConfigError, match="reads `reward"):
        Objective.of({}).prepare(batch)
