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


def gradient(policy, rollouts):
    """Of the summed log-probs, by weight."""
    policy.evaluate(rollouts).log_probs.sum().backward()
    return {n: p.grad.clone() for n, p in policy.inner.named_parameters() if p.grad is not None}


@torch.no_grad()
def slope(policy, rollouts, along):
    """Of the summed log-probs along a direction of the weights, by central differences."""
    sums = []
    for step in (1e-3, -2e-3):
        for name, weight in policy.inner.named_parameters():
            if name in along:
                weight += step * along[name]
        sums.append(float(policy.evaluate(rollouts).log_probs.double().sum()))
    return (sums[0] - sums[1]) / 2e-3


def test_through_is_the_gradient_of_the_guided_velocity_and_detached_is_not():
    """Where the two differ most, the first is the slope of the log-probs."""
    through, detached = made(guidance="through"), made(guidance="detached")
    rollouts = through.rollout(flow_requests(2, 1), KEY)
    assert torch.equal(rollouts.old_log_probs, detached.rollout(flow_requests(2, 1), KEY).old_log_probs), "same samples"
    whole, part = gradient(through, rollouts), gradient(detached, rollouts)
    apart = {name: whole[name] - part[name] for name in whole}
    length = sum(float(each.square().sum()) for each in apart.values()) ** 0.5
    assert length > 0.1 * sum(float(each.square().sum()) for each in whole.values()) ** 0.5
    along = {name: each / length for name, each in apart.items()}
    mine, theirs = (sum(float((g[name] * along[name]).sum()) for name in along) for g in (whole, part))
    assert mine == pytest.approx(slope(through, rollouts, along), abs=0.1 * length)
    assert mine - theirs == pytest.approx(length, rel=1e-4)


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


def test_evaluation_has_a_guidance_of_its_own():
    """Rollouts and training stay without; evaluation is that of a policy that is guided throughout, and the reverse."""
    unguided = {"lora": {"rank": 4, "alpha": 8}, "guidance_scale": 1.0}
    trained, plain, guided = (
        flow_policy(**unguided | o) for o in ({"eval_guidance": 3.0}, {}, {"guidance_scale": 3.0})
    )
    for policy in (trained, plain, guided):
        nudge(policy, 0.05)

    def drawn(policy):
        return policy.rollout(flow_requests(2, 1), KEY, greedy=True).outputs[0].tobytes()

    rows = trained.rollout(flow_requests(2, 1), KEY)
    assert torch.equal(rows.old_log_probs, plain.rollout(flow_requests(2, 1), KEY).old_log_probs)
    assert drawn(trained) == drawn(guided) != drawn(plain)
    assert (trained.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-5, "and back to none afterwards"
    back = flow_policy(**unguided | {"guidance_scale": 3.0, "eval_guidance": 1.0})
    nudge(back, 0.05)
    assert drawn(back) == drawn(plain)
