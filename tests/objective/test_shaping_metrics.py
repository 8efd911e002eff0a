"""FlowSE-GRPO's reward: metrics over their spread."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.shaping.metrics import flowse_grpo
from mmrl.record import Batch

NAN = float("nan")


def batch(reward=None, **components):
    values = {name: torch.tensor(each) for name, each in components.items()}
    rows = len(next(iter(values.values())))
    return Batch(
        mask=torch.ones(rows, 2, dtype=torch.bool), old_log_probs=torch.zeros(rows, 2),
        group=torch.zeros(rows, dtype=torch.long), components=values,
        reward=torch.zeros(rows) if reward is None else torch.tensor(reward),
    )  # fmt: skip


def test_the_worked_numbers():
    found = flowse_grpo(batch(a=[1.0, 2.0, 3.0], b=[0.1, 0.1, 0.4]))
    assert found.tolist() == pytest.approx([1.93185, 3.15660, 6.50266], abs=1e-4)


def test_a_metric_without_spread_adds_nothing_and_units_do_not_matter():
    one = flowse_grpo(batch(a=[1.0, 2.0, 3.0], b=[7.0, 7.0, 7.0]))
    assert one.tolist() == flowse_grpo(batch(a=[1.0, 2.0, 3.0])).tolist()
    assert flowse_grpo(batch(a=[1000.0, 2000.0, 3000.0])).tolist() == pytest.approx(one.tolist())


def test_what_is_not_finite_adds_zero_and_unscored_rows_stay_unscored():
    found = flowse_grpo(batch(a=[1.0, NAN, 3.0], b=[2.0, 2.0, 4.0]))
    assert found[1] == pytest.approx(2 / 0.942809, abs=1e-4)
    assert torch.isnan(flowse_grpo(batch(reward=[0.0, NAN, 0.0], a=[1.0, 2.0, 3.0]))).tolist() == [False, True, False]


def test_weights_name_components():
    rows = batch(a=[1.0, 2.0, 3.0], b=[0.1, 0.1, 0.4])
    half = flowse_grpo(rows, weights={"a": 0.5})
    assert half.tolist() == pytest.approx([v / 2 for v in flowse_grpo(batch(a=[1.0, 2.0, 3.0])).tolist()])
    with pytest.raises(ConfigError, match="component"):
        flowse_grpo(rows, weights={"c": 1.0})
