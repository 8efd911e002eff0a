"""RECAP: worked weights, and a component that stalls gains on one that improves."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.shaping.recap import objective_weights, recap, strain
from mmrl.record import Batch


def weights(*losses, window=4, temperature=5.0):
    return list(objective_weights(dict(zip("abc", losses, strict=False)), window, temperature).values())


def batch_of(step: int, **components: list[float]) -> Batch:
    values = {name: torch.tensor(each) for name, each in components.items()}
    rows = len(next(iter(values.values())))
    return Batch(
        mask=torch.ones(rows, 1, dtype=torch.bool), old_log_probs=torch.zeros(rows, 1), group=torch.zeros(rows).long(),
        reward=torch.zeros(rows), components=values, step=step,
    )  # fmt: skip


def test_a_falling_objective_weighs_less_than_a_stalled_one():
    assert weights([0.5] * 8, [0.8] * 4 + [0.4] * 4) == pytest.approx([1.0500, 0.9500], abs=1e-4)


def test_noise_adds_to_the_weight():
    noisy = [0.5] * 4 + [0.3, 0.7, 0.3, 0.7]
    assert strain(noisy, 4) == pytest.approx(1.2)
    assert weights(noisy, [0.8] * 4 + [0.4] * 4) == pytest.approx([1.0699, 0.9301], abs=1e-4)


def test_weights_add_up_and_are_one_until_two_windows_are_full():
    assert sum(weights([0.5] * 8, [0.9, 0.1] * 4, [0.2] * 8)) == pytest.approx(3)
    assert weights([0.5] * 7, [0.1] * 8) == [1, 1]
    assert weights([0.0] * 8, [0.0] * 8) == [1, 1]


def test_the_reward_is_the_weighed_mean_and_a_round_more_counts_once():
    shaping = recap(window=1)
    for step, low in enumerate((0.2, 0.6)):
        for _ in range(2):
            reward = shaping(batch_of(step, stalled=[0.5, 0.5], rising=[low, low]))
            assert reward.tolist() == pytest.approx([(0.5 + low) / 2] * 2)
    weight = objective_weights({"s": [0.5, 0.5], "r": [0.8, 0.4]}, 1, 5.0)
    reward = shaping(batch_of(2, stalled=[1.0, 0.0], rising=[0.0, 1.0]))
    assert reward.tolist() == pytest.approx([weight["s"] / 2, weight["r"] / 2])


def test_it_goes_on_after_a_save():
    shaping, again = recap(window=1), recap(window=1)
    shaping(batch_of(0, a=[0.5], b=[0.1]))
    shaping(batch_of(1, a=[0.5], b=[0.7]))
    again.load_state_dict(json.loads(json.dumps(shaping.state_dict())))
    last = batch_of(2, a=[1.0, 0.0], b=[0.0, 1.0])
    assert again(last).tolist() == shaping(last).tolist()


def test_a_component_beyond_zero_and_one_is_refused():
    with pytest.raises(ConfigError, match=r"component 'a' must lie in \[0, 1\], got \[-1, 0.5\]"):
        recap()(batch_of(0, a=[-1.0, 0.5]))
