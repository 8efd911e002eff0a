"""Denoising trees: rows that begin in others share states, are scored once in them, and train as if written out."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.policies.generation.sampling import Group
from mmrl.policies.generation.steps import ode_plan
from mmrl.randomness import Key
from mmrl.record import Request, Rollouts, Start
from tests.policies.generation.test_policy import flow_policy, flow_requests, nudge

KEY = Key(7, 3)


def tree(policy, at=(2, 4)) -> Rollouts:
    """One prompt: a root, and at each place a sibling of every row there is."""
    request = replace(flow_requests()[0], count=1)
    rows = policy.rollout([request], KEY)
    for place in at:
        starts = [Start(rows.index([i]), place) for i in range(len(rows))]
        more = [
            Request(request.prompt, 1, request.group, first_member=len(rows) + i, start=s) for i, s in enumerate(starts)
        ]
        rows = Rollouts.concatenate([rows, policy.rollout(more, KEY)])
    return rows


@pytest.fixture(scope="module")
def policy():
    made = flow_policy(train_steps={"select": "all"})
    nudge(made)
    return made


@pytest.fixture(scope="module")
def grown(policy):
    return tree(policy)


def calls_of(policy, act):
    rows, call = [], policy.inner.transformer.forward
    policy.inner.transformer.forward = lambda **inputs: rows.append(len(inputs["hidden_states"])) or call(**inputs)
    try:
        act()
    finally:
        policy.inner.transformer.forward = call
    return sum(rows)


def test_leaves_share_the_states_before_their_start_and_draw_their_own_behind_it(grown):
    latents = grown.replay["latents"]
    assert grown.owner[:, 0].tolist() == [0, 0, 0, 0]
    assert grown.owner[:, 2].tolist() == [0, 1, 0, 1] and grown.owner[:, 4].tolist() == [0, 1, 2, 3]
    assert torch.equal(latents[3, :5], latents[1, :5]) and torch.equal(latents[1, :3], latents[0, :3])
    assert (latents[1, 3] - latents[0, 3]).abs().max() > 1e-3, "its own noise"
    assert torch.equal(grown.old_log_probs[3, :4], grown.old_log_probs[1, :4]) and grown.mask[:, :5].all()


def test_model_calls_are_those_of_unique_states(policy, grown):
    """5 trained steps of 6. Sampling: the root 6, its sibling 4, their siblings 2 each. Scoring: 5 + 3 + 1 + 1."""
    guided = 2 if policy.generator.asked.guided else 1
    assert calls_of(policy, lambda: tree(policy)) == (6 + 4 + 2 + 2) * guided
    assert calls_of(policy, lambda: policy.evaluate(grown, ())) == (5 + 3 + 1 + 1) * guided


def test_loss_and_gradient_are_those_of_the_leaves_written_out(policy, grown):
    apart = replace(grown, group=torch.arange(len(grown)), owner=None)
    weights = torch.tensor([1.0, -1.0, 0.5, -2.0])[:, None]

    def gradient(rows):
        policy.module.zero_grad()
        evaluation = policy.evaluate(rows, ())
        loss = -(evaluation.log_probs * weights).sum() / rows.mask.sum()
        loss.backward()
        return loss.item(), [p.grad.clone() for p in policy.inner.parameters() if p.grad is not None]

    (loss, gradients), (expected, reference) = gradient(grown), gradient(apart)
    assert loss == pytest.approx(expected, abs=1e-6) and len(gradients) == len(reference) > 0
    for value, other in zip(gradients, reference, strict=True):
        assert (value - other).abs().max() <= 1e-6 * max(1.0, other.abs().max().item())


def test_the_self_check_holds_in_the_leaves(policy, grown):
    with torch.no_grad():
        again = policy.evaluate(grown, ()).log_probs
    assert ((again - grown.old_log_probs) * grown.mask).abs().max() < 1e-5


def test_micro_batches_hold_whole_trees(policy, grown):
    other = replace(grown, group=torch.ones_like(grown.group))
    two = Rollouts.concatenate([grown, other])
    assert [len(p) for p in policy.micro_batches(two, torch.arange(8), 3)] == [4, 4]
    assert [len(p) for p in policy.micro_batches(two, torch.arange(8), 8)] == [8]


def test_starts_without_a_stored_state_or_noise_to_draw_are_refused(policy):
    windowed = flow_policy(train_steps={"select": "window", "size": 2, "low": 2, "high": 4})
    request = replace(flow_requests()[0], count=1)
    row = windowed.rollout([request], KEY)
    with pytest.raises(PolicyError, match="behind step 5 no noise is drawn"):
        windowed.rollout([replace(request, first_member=1, start=Start(row, 5))], KEY)
    with pytest.raises(
        PolicyError, match=r"kept its states before steps 2 to 4, .* choose one of 3 to 4, or policy\.train_steps"
    ):
        windowed.rollout([replace(request, first_member=1, start=Start(row, 1))], KEY)


@pytest.mark.parametrize(("apart", "alike"), [(None, 0.0), (4.0, 1 / 17), (1.0, 0.5)])
def test_siblings_draw_alike_as_the_mixture_has_it_and_each_as_ever(policy, grown, apart, alike):
    """Where a row parts from another their noises have the correlation 1 / (1 + s^2) of BranchGRPO's
    (xi + s eta) / sqrt(1 + s^2), and each is a unit normal; behind that they are independent."""
    conditioned, nobody = policy._conditioned(grown.encoded, torch.zeros(2, dtype=torch.long)), torch.tensor([0, 1])
    group = Group(["p", "p"], nobody, conditioned, ode_plan(2, 6, nobody), {1: Start(grown.index([0]), 2)})
    group.siblings = apart
    parted, later = (torch.stack([group.noise(r, i, KEY, (400, 200)) for r in (0, 1)]).flatten(1) for i in (2, 3))
    assert float(torch.corrcoef(parted)[0, 1]) == pytest.approx(alike, abs=0.015)
    assert abs(float(torch.corrcoef(later)[0, 1])) < 0.015
    assert parted.std(1).tolist() == pytest.approx([1, 1], abs=0.01)


def test_siblings_that_draw_alike_replay_to_the_same_log_probs():
    made = flow_policy(sampler={"siblings": 1.0})
    rows, apart = tree(made), tree(flow_policy())
    assert (made.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-5
    assert torch.equal(rows.replay["latents"][0], apart.replay["latents"][0]), "a root is as ever"
    assert not torch.equal(rows.replay["latents"][1], apart.replay["latents"][1])
