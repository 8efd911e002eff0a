"""MixGRPO-Flash's tail: where it goes by hand, how much nearer it is, and what it saves."""

from itertools import pairwise

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.policies.generation.sde import schedule, sde_step
from mmrl.policies.generation.tail import solve, tail_times
from mmrl.randomness import Key
from tests.policies.generation.tiny import flow_policy, flow_requests

MEAN, STD = 1.0, 0.5


def exact(x, t, _):
    """The velocity of data N(1, .5^2), known exactly."""
    t = t[:, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    score = -(x - (1 - t) * MEAN) / variance
    return -(x + t * score) / (1 - t).clamp(min=1e-9)


def end_of(x, t):
    """Where the ODE takes x: its place in the law of time t is its place in the law of the data."""
    return MEAN + STD * (x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2) ** 0.5


def euler(x, times):
    for t, after in pairwise(times):
        x = sde_step("ode", exact(x, t.expand(len(x)), None), x, t, after, 0.0, times[1]).mean
    return x


def test_times_are_a_share_of_the_schedules_and_end_at_zero():
    times = schedule(10, 3)
    assert torch.equal(tail_times(times, 4, 1.0), times[4:])
    short = tail_times(times, 5, 0.4)  # 5 left: 2
    assert short[0] == times[5] and short[-1] == 0 and len(short) == 3
    assert short[1] == pytest.approx(float((times[7] + times[8]) / 2))
    assert len(tail_times(times, 9, 0.4)) == 2, "one step at least"


def test_one_step_is_eulers():
    x, times = torch.linspace(-1, 2, 7)[:, None], torch.tensor([0.6, 0.0])
    assert torch.allclose(solve(x, None, exact, times), euler(x, times), atol=1e-6)


def test_few_steps_end_nearer_than_eulers_and_more_of_them_nearer_still():
    x = torch.linspace(-1, 2, 50)[:, None]
    worst = {}
    for steps in (16, 32, 64):
        times = torch.linspace(0.75, 0, steps + 1)
        worst[steps] = (solve(x, None, exact, times) - end_of(x, 0.75)).abs().max()
        assert worst[steps] < 0.25 * (euler(x, times) - end_of(x, 0.75)).abs().max(), steps
    assert worst[64] < 0.4 * worst[32], "Euler's is halved; the first and the last step are Euler's here too"


def test_calls_are_saved_and_the_trained_steps_are_the_same():
    window = {"select": "window", "size": 2, "low": 0, "high": 2}
    whole, short = (flow_policy(train_steps=window, tail=tail) for tail in (None, 0.5))
    rows, few = (each.rollout(flow_requests(), Key(3)) for each in (whole, short))
    assert torch.equal(rows.old_log_probs, few.old_log_probs) and torch.equal(rows.mask, few.mask)
    assert whole.counted()["calls/sampled"] == 6 * 6, "six rows, each from a noise of its own, six steps"
    assert short.counted()["calls/sampled"] == 6 * (2 + 2)
    gap = (short.evaluate(few, ()).log_probs - few.old_log_probs).abs().max()
    assert gap < 1e-5, "what is trained is what was sampled"


def test_evaluation_has_no_tail():
    window = {"select": "window", "size": 2}
    policies = [flow_policy(train_steps=window, tail=tail) for tail in (None, 0.4)]
    images = [policy.rollout(flow_requests(), Key(3), greedy=True) for policy in policies]
    assert images[0].outputs[0].tobytes() == images[1].outputs[0].tobytes()


def test_a_tail_needs_a_window():
    with pytest.raises(ConfigError, match="select=window"):
        flow_policy(tail=0.4)
