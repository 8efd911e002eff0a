"""Calls of the transformer: what a step is charged for, and what not."""

import pytest

from mmrl.policies.generation.calls import spent
from mmrl.randomness import Key
from tests.policies.generation.tiny import flow_policy, flow_requests

KEY = Key(2)


@pytest.mark.parametrize(("scale", "passes"), [(1.0, 1), (3.0, 2)])
def test_a_step_by_hand(scale, passes):
    """6 rows, 6 steps, 5 of them trained, guidance twice; evaluation and self-check are charged to nobody."""
    policy = flow_policy(guidance_scale=scale, reuse_unconditional=False)
    policy.rollout(flow_requests(), KEY, greedy=True)
    rollouts = policy.rollout(flow_requests(), KEY)
    policy.replayed(rollouts)
    policy.evaluate(rollouts).log_probs.sum().backward()
    assert policy.told(policy.counted()) == ({"guidance/reused": 0.0} if passes == 2 else {}) | {
        "calls/sampled": 36 * passes, "calls/scored": 0, "calls/trained": 30 * passes
    }  # fmt: skip
    assert spent(policy.counted()) == 0, "each is told once"


def test_the_other_weights_of_a_likelihood_are_scored():
    policy = flow_policy(likelihood="matching", draws={"count": 2}, anchor={})
    rollouts = policy.rollout(flow_requests(), KEY)
    from mmrl.stages import Need

    gaps = [Need("velocity_gap", weights="current", options=(("to", name),)) for name in ("anchor", "reference")]
    policy.evaluate(rollouts, gaps)
    assert policy.counted() == {"calls/sampled": 36, "calls/scored": 24, "calls/trained": 12}
