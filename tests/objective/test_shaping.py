"""Reward shaping: the specs' worked numbers."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(reward, **fields) -> Batch:
    reward = torch.tensor(reward, dtype=torch.float64)
    for name in ("length", "group"):
        if name in fields:
            fields[name] = torch.tensor(fields[name])
    fields.setdefault("mask", torch.ones(len(reward), 1, dtype=torch.bool))
    fields.setdefault("old_log_probs", torch.zeros(fields["mask"].shape, dtype=torch.float64))
    return Batch(reward=reward, **fields)


def test_soft_overlong_penalties():
    batch = batch_of([0.0] * 4, length=[10000, 17408, 20480, 20481])
    shaped = Bound.of("shaping", {"name": "soft_overlong", "max_length": 20480})(batch)
    torch.testing.assert_close(shaped, torch.tensor([0, -0.25, -1, -1]).double())


def test_soft_overlong_takes_the_policys_limit_or_says_it_has_none():
    limited = batch_of([1.0, 1.0], length=[8, 10], max_length=10)
    assert Bound.of("shaping", "soft_overlong")(limited).tolist() == [1.0, 0.0]
    with pytest.raises(ConfigError, match="max_length"):
        Bound.of("shaping", "soft_overlong")(batch_of([1.0], length=[8]))
