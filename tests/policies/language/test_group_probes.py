"""Probes of whole groups and of the policy beside its reference, against all logits at once."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.divergence import position_divergence, squared_hellinger
from mmrl.objective.credit.representation import residual_weights, token_hidden_reward
from mmrl.policies.language.policy import STATES
from mmrl.policies.language.probes import group_probes
from mmrl.randomness import Key
from mmrl.stages import Need
from tests.policies.language.scenes import mixed_prompts, requests


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy()


@pytest.fixture(scope="module")
def rollouts(policy):
    rolled = policy.rollout(requests(mixed_prompts()[:2]), Key(3))
    rolled.success = torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 1])
    return rolled


@pytest.fixture(scope="module")
def states(policy, rollouts):
    with torch.no_grad():
        return policy._score(policy.inner, rollouts, policy._shown(rollouts, None), [STATES])[STATES.key]


@pytest.fixture(scope="module")
def log_probs(policy, states):
    """(B, T, V), all at once."""
    with torch.no_grad():
        return torch.log_softmax(policy.inner.logits(states.flatten(0, 1)), -1).view(*states.shape[:2], -1)


def column(policy, rollouts, probe, weights="old", **options):
    need = Need(probe, weights=weights, options=tuple(sorted(options.items())))
    return policy.evaluate(rollouts, [need], weights=weights).columns[need.key]


def groups(rollouts):
    return [(rollouts.group == g).nonzero().squeeze(1) for g in torch.unique(rollouts.group)]


def test_states_give_the_log_probs_of_the_pass(policy, rollouts, log_probs):
    own = log_probs.gather(-1, rollouts.actions[..., None]).squeeze(-1)
    torch.testing.assert_close(own[rollouts.mask], rollouts.old_log_probs[rollouts.mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["code", "kl"])
def test_divergence_of_a_group_in_pieces(policy, rollouts, log_probs, kind, monkeypatch):
    monkeypatch.setattr(group_probes, "ROWS", 9)
    got = column(policy, rollouts, "group_divergence", kind=kind)
    for rows in groups(rollouts):
        wanted = position_divergence(log_probs[rows], rollouts.mask[rows], kind)
        torch.testing.assert_close(got[rows], wanted.expand(len(rows), -1) * rollouts.mask[rows], atol=1e-4, rtol=1e-4)
    assert got.abs().sum() > 0


def test_a_part_of_a_group_gives_other_numbers(policy, rollouts):
    whole = column(policy, rollouts, "group_divergence")
    part = column(policy, rollouts.index([0, 1]), "group_divergence")
    width = part.shape[1]
    assert not torch.allclose(whole[:2, :width], part, atol=1e-4), "hence whole groups only"


def test_hidden_reward_of_each_group(policy, rollouts, states, log_probs, monkeypatch):
    monkeypatch.setattr(group_probes, "ROWS", 5)
    got = column(policy, rollouts, "token_hidden_reward")
    for rows in groups(rollouts):
        mask = rollouts.mask[rows]
        ids = rollouts.actions[rows][mask]
        seen = torch.unique(ids)
        errors = (ids[:, None] == seen).float() - log_probs[rows][mask].exp()[:, seen]
        right = (rollouts.success[rows] > 0.5)[:, None].expand_as(mask)[mask]
        wanted = token_hidden_reward(errors, states[rows][mask], right)
        torch.testing.assert_close(got[rows][mask], wanted, atol=1e-4, rtol=1e-4)


def test_residual_weight_of_each_group(policy, rollouts, states):
    got = column(policy, rollouts, "residual_weight", rank=3, low=0.2)
    for rows in groups(rollouts):
        mask, right = rollouts.mask[rows], (rollouts.success[rows] > 0.5)[:, None]
        wanted = residual_weights(states[rows][mask & right], states[rows][mask & ~right], rank=3, low=0.2)
        torch.testing.assert_close(got[rows][mask & ~right], wanted, atol=1e-4, rtol=1e-4)
        assert (got[rows][mask & right] == 1).all()


def test_without_a_verifier_right_and_wrong_cannot_be_told(policy, rollouts):
    bare = rollouts.index(torch.arange(len(rollouts)))
    bare.success = None
    with pytest.raises(ConfigError, match="success"):
        column(policy, bare, "token_hidden_reward")


def test_distance_to_the_reference(make_policy, rollouts, log_probs, monkeypatch):
    monkeypatch.setattr(group_probes, "ROWS", 7)
    policy = make_policy()
    assert column(policy, rollouts, "hellinger", "reference").abs().max() < 1e-5
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        states = policy._score(policy.inner, rollouts, policy._shown(rollouts, None), [STATES])[STATES.key]
        moved = torch.softmax(policy.inner.logits(states.flatten(0, 1)), -1).view_as(log_probs)
    got = column(policy, rollouts, "hellinger", "reference")
    wanted = squared_hellinger(moved, log_probs.exp()) * rollouts.mask
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)
    assert got.max() > 1e-3
