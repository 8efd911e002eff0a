"""Worked numbers of the baselines that remember a prompt."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.advantages.remembered import (
    dcpo_smooth,
    initial_beta,
    retention,
    sampling_weight,
    spo_single_stream,
)
from mmrl.record import Batch


def of(rewards: list[float], prompt: int | list[int] = 1, **fields) -> Batch:
    rows = len(rewards)
    prompts = [prompt] * rows if isinstance(prompt, int) else prompt
    return Batch(
        mask=torch.ones(rows, 1, dtype=torch.bool), old_log_probs=torch.zeros(rows, 1, dtype=torch.float64),
        reward=torch.tensor(rewards, dtype=torch.float64), group=torch.tensor(prompts), prompt=torch.tensor(prompts),
        **fields,
    )  # fmt: skip


def close(values, expected, atol=1e-6) -> bool:
    return torch.allclose(torch.as_tensor(values).double(), torch.tensor(expected).double(), atol=atol)


def test_the_first_visit_is_plain_standardisation():
    assert close(dcpo_smooth()(of([1, 0, 0, 1])), [0.8660254, -0.8660254, -0.8660254, 0.8660254])


def test_a_group_without_spread_learns_from_its_history():
    smooth = dcpo_smooth()
    smooth.seen[1] = (2, 0.5, 0.25)
    assert close(smooth(of([1, 1, 1, 1])), [0.235702] * 4)


def test_the_blend_takes_the_smaller():
    smooth = dcpo_smooth()
    smooth.seen[1] = (1, 0.25, 0.25)
    assert close(smooth(of([1, 0, 0, 1])), [0.996747, -0.771253, -0.771253, 0.996747])


def test_prompts_are_remembered_apart_and_across_a_save():
    smooth = dcpo_smooth()
    smooth(of([1, 0, 0, 0], [1, 1, 2, 2]))
    again = dcpo_smooth()
    again.load_state_dict(smooth.state_dict())
    batch = of([1, 1, 1, 0], [1, 1, 2, 2])
    assert torch.equal(smooth(batch), again(batch))
    assert smooth.seen[1][0] == 2 and smooth.seen[1] != smooth.seen[2]


def test_a_batch_without_prompt_numbers_is_refused():
    batch = of([1, 0])
    batch.prompt = None
    with pytest.raises(ConfigError, match="prompt"):
        dcpo_smooth()(batch)


def test_the_prior_from_offline_samples():
    assert close(initial_beta(8, 3), [3.111111, 4.888889])
    assert initial_beta(0, 0) == (0.5, 0.5)


def test_memory_fades_with_the_policys_drift():
    assert retention(0.03) == 0.875
    assert retention(0.006) == pytest.approx(0.933033, abs=1e-6)
    assert retention(0.0) == 0.96


def test_the_tracker_moves_after_the_reward_is_judged():
    tracker = spo_single_stream(low=0.9)
    tracker.beta[1] = (3.111111, 4.888889)
    advantage = tracker(of([1, 0], [1, 2]))
    assert close(tracker.beta[1], [3.8, 4.4])
    assert tracker.value(1) == pytest.approx(0.463415, abs=1e-6)
    raw = torch.tensor([1 - 0.388889, -0.5], dtype=torch.float64)
    assert torch.allclose(advantage, (raw - raw.mean()) / raw.std(), atol=1e-5)


def test_single_rollouts_train():
    from mmrl.objective import explain

    batch = of([1, 0, 1], [1, 2, 3])
    assert explain("spo_single_stream", batch, batch.old_log_probs).batch.trained.all()


def test_rewards_outside_the_unit_interval_are_refused():
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        spo_single_stream()(of([2, 0], [1, 2]))


def test_uncertain_prompts_are_sampled_more():
    assert sampling_weight(1, 1) == pytest.approx(0.55)
    assert sampling_weight(9, 1) < 0.55


def test_the_tracker_survives_a_save():
    tracker = spo_single_stream()
    tracker(of([1, 0], [1, 2]))
    again = spo_single_stream()
    again.load_state_dict(tracker.state_dict())
    assert again.beta == tracker.beta
