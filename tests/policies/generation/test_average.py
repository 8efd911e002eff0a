"""The moving average of the weights: its recursion, where it acts, and that it survives a resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrl.errors import PolicyError
from mmrl.policies.weight_average import AverageConfig, WeightAverage
from mmrl.randomness import Key
from tests.policies.generation.tiny import flow_policy, flow_requests, nudge

KEY = Key(2, 0)


def test_recursion_by_hand():
    """every 2, decay .9: at n = 2 d = 3/12, at n = 4 d = 5/14, at n = 200 d = .9."""
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(AverageConfig(decay=0.9, every=2))
    with torch.no_grad():
        module.weight.fill_(1.0)
        average.start(module)
        for value in (2.0, 3.0, 4.0, 5.0):
            module.weight.fill_(value)
            average.update(module)
        first = 0.25 * 1 + 0.75 * 3
        second = 5 / 14 * first + 9 / 14 * 5
        assert average.values["weight"].item() == pytest.approx(second)
        average.updates = 199
        module.weight.fill_(0.0)
        average.update(module)
    assert average.values["weight"].item() == pytest.approx(0.9 * second)
    with average.applied(module):
        assert module.weight.item() == pytest.approx(0.9 * second)
    assert module.weight.item() == 0.0


@pytest.fixture
def moved():
    """A policy that has left its start by one optimizer step of which the average took half."""
    policy = flow_policy(lora={"rank": 4}, ema={"decay": 0.5, "every": 1})
    policy.rollout(flow_requests(), KEY)
    policy.average.updates = 100
    nudge(policy, 0.2)
    policy.after_update()
    return policy


def test_evaluation_and_export_use_the_average(moved, tmp_path):
    start = flow_policy(lora={"rank": 4})
    exported = flow_policy(lora={"rank": 4})
    trained = moved.inner.state_dict()
    images = moved.rollout(flow_requests(), KEY, greedy=True).outputs
    with moved._averaged():
        exported.load_trainable_state({n: p for n, p in moved.trainable_state().items() if "average" not in n})
    assert [i.tobytes() for i in exported.rollout(flow_requests(), KEY, greedy=True).outputs] == [
        i.tobytes() for i in images
    ]
    assert images[0].tobytes() != start.rollout(flow_requests(), KEY, greedy=True).outputs[0].tobytes()
    assert all(torch.equal(v, trained[n]) for n, v in moved.inner.state_dict().items())
    moved.save_pretrained(tmp_path / "out")
    again = flow_policy(lora=None, adapter=str(tmp_path / "out"))
    assert again.rollout(flow_requests(), KEY, greedy=True).outputs[0].tobytes() == images[0].tobytes()


def test_rollouts_are_the_trained_weights_and_ema_log_probs_the_average(moved):
    rollouts = moved.rollout(flow_requests(), KEY)
    with torch.no_grad():
        torch.testing.assert_close(moved.evaluate(rollouts).log_probs, rollouts.old_log_probs)
        assert (moved.evaluate(rollouts, weights="ema").log_probs - rollouts.old_log_probs).abs().max() > 1e-4
    with pytest.raises(PolicyError, match=r"policy\.ema"):
        flow_policy().evaluate(rollouts, weights="ema")


def test_resume(moved):
    again = flow_policy(lora={"rank": 4}, ema={"decay": 0.5, "every": 1})
    again.load_trainable_state(moved.trainable_state())
    again.load_state_dict(moved.state_dict())
    for each in (moved, again):
        nudge(each, 0.1)
        each.after_update()
    assert again.average.updates == moved.average.updates == 102
    assert all(torch.equal(v, moved.trainable_state()[n]) for n, v in again.trainable_state().items())
