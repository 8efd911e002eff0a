"""Guidance in training is a choice with a name, and each recipe has its paper's."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.recipes import load_recipe, recipe_names
from tests.policies.generation.tiny import flow_policy, flow_requests, nudge

KEY = Key(5)


def made(**options):
    policy = flow_policy(guidance_scale=3.0, lora={"rank": 4, "alpha": 8}, **options)
    nudge(policy, 0.05)
    return policy


def slope(policy, rollouts):
    """(by backward, by central differences) of the summed log-probs along one direction of the weights."""
    weights = {n: p for n, p in policy.inner.named_parameters() if p.requires_grad}
    along = {n: Key(1, purpose=n).normal(*p.shape) for n, p in weights.items()}
    policy.evaluate(rollouts).log_probs.sum().backward()
    by_hand = sum(float((p.grad * along[n]).sum()) for n, p in weights.items() if p.grad is not None)
    sums = []
    with torch.no_grad():
        for step in (1e-3, -2e-3):
            for name, weight in weights.items():
                weight += step * along[name]
            sums.append(float(policy.evaluate(rollouts).log_probs.double().sum()))
    return by_hand, (sums[0] - sums[1]) / 2e-3


def test_through_is_the_gradient_of_the_guided_velocity_and_detached_is_not():
    through, detached = made(guidance="through"), made(guidance="detached")
    rollouts = through.rollout(flow_requests(2, 1), KEY)
    assert torch.equal(rollouts.old_log_probs, detached.rollout(flow_requests(2, 1), KEY).old_log_probs), "same samples"
    own, true = slope(through, rollouts)
    assert own == pytest.approx(true, rel=0.02)
    stopped, _ = slope(detached, rollouts)
    assert abs(stopped - true) > 0.2 * abs(true)


def test_without_guidance_all_choices_are_one():
    choices = [flow_policy(guidance=name) for name in ("none", "detached", "through")]
    rollouts = [each.rollout(flow_requests(2, 1), KEY) for each in choices]
    assert all(torch.equal(r.old_log_probs, rollouts[0].old_log_probs) for r in rollouts)


def test_choices_that_would_train_another_policy_than_sampled_are_refused():
    with pytest.raises(ConfigError, match=r"policy\.guidance=detached"):
        flow_policy(guidance="none", guidance_scale=2.0)
    with pytest.raises(ConfigError, match="trains predictions without guidance"):
        flow_policy(guidance="through", likelihood="matching")
    flow_policy(guidance="none", guidance_scale=2.0, likelihood="matching", draws={"count": 2})


def test_every_flow_recipe_names_its_own():
    named = {}
    for name in recipe_names():
        policy = load_recipe(name).policy
        if "guidance_scale" in policy:
            named[name] = policy.get("guidance")
            guided = policy["guidance_scale"] > 1
            assert named[name] == ("detached" if guided else "none"), name
    assert named["flow_grpo"] == "detached" and named["diffusion_nft"] == "none" and len(named) >= 18
