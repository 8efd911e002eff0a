"""Which groups and rows train: dropped, filtered."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(reward, group, **fields) -> Batch:
    reward = torch.tensor(reward, dtype=torch.float64)
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = torch.tensor(value)
    fields.setdefault("mask", torch.ones(len(reward), 1, dtype=torch.bool))
    return Batch(
        old_log_probs=torch.zeros(fields["mask"].shape, dtype=torch.float64), reward=reward,
        group=torch.tensor(group), **fields,
    )  # fmt: skip


NAN = float("nan")


def test_dynamic_sampling_drops_flat_groups():
    batch = batch_of([1, 1, 1, 0, 0, 0, NAN, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    selection = Bound.of("group", "dynamic_sampling")(batch)
    assert selection.trained.tolist() == [False, False, True, True, False, False, False, False]
    assert selection.counted.tolist() == selection.trained.tolist()


def test_dynamic_sampling_looks_at_success_where_length_shaping_moved_the_reward():
    batch = batch_of([1.0, 0.9, 1.0, 0.2], [0, 0, 1, 1], success=[1.0, 1.0, NAN, NAN])
    assert Bound.of("group", "dynamic_sampling")(batch).trained.tolist() == [False, False, True, True]
    by_reward = Bound.of("group", {"name": "dynamic_sampling", "by": "reward"})(batch)
    assert by_reward.trained.all()
    with pytest.raises(ConfigError, match="did you mean 'success'"):
        Bound.of("group", {"name": "dynamic_sampling", "by": "sucess"})(batch)


def test_dynamic_sampling_bounds_and_rows_that_are_already_out():
    batch = batch_of([1, 1, 1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    kept = Bound.of("group", {"name": "dynamic_sampling", "high": 0.7})(batch)
    assert kept.trained.tolist() == [False] * 4 + [True] * 4
    gone = batch_of([1, 1, 0, 1], [0, 0, 1, 1], counted=[False, False, True, True])
    assert Bound.of("group", "dynamic_sampling")(gone).trained.tolist() == [False, False, True, True]


def test_overlong_filter_keeps_the_baseline():
    batch = batch_of([1, 0], [0, 0], truncated=[False, True])
    selection = Bound.of("group", "overlong_filter")(batch)
    assert selection.trained.tolist() == [True, False] and selection.counted is None
