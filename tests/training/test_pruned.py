"""What is pruned is not computed: the gradient is that of the whole tree, for the states that are left."""

from dataclasses import replace

import pytest
import torch

from mmrl.batch import Batch
from mmrl.objective import Objective
from mmrl.training.pruned import prunes, without_idle
from tests.policies.generation.test_trees import tree
from tests.policies.generation.tiny import flow_policy, nudge

REWARD = torch.tensor([0.1, 0.3, 0.9, 0.5])


def objective(*credit, **more) -> Objective:
    tree_of = {"advantage": "branchgrpo", "credit": list(credit), "ratio": "token"}
    clip = {"name": "clip", "low": 1e-3, "high": 1e-3}
    return Objective.of(
        {**tree_of, "trust_region": clip, "aggregation": {"name": "token_mean", "shared": "once"}, **more}
    )


@pytest.fixture(scope="module")
def grown():
    policy = flow_policy()
    rows = tree(policy)
    nudge(policy, 0.01)
    return policy, rows


def gradient(policy, rows, chosen, prune: bool):
    batch = Batch(rows.mask, rows.old_log_probs, group=rows.group, member=rows.member, reward=REWARD, owner=rows.owner)
    batch, weights = chosen.prepare(batch)
    if prune:
        rows, batch = without_idle(rows, batch, weights)
    policy.module.zero_grad()
    policy.counted()
    chosen.loss(policy.evaluate(rows), batch, weights).loss.backward()
    found = torch.cat([p.grad.flatten() for p in policy.inner.parameters() if p.grad is not None])
    return found, policy.counted()["calls/trained"]


@pytest.mark.parametrize(
    ("credit", "whole", "left"),
    [
        ({"name": "depth_pruning", "window": 2, "start": 2, "stop": 2}, 10, 10 - 2 - 2),
        ({"name": "width_pruning"}, 10, 10),
        ({"name": "depth_pruning", "window": 9, "start": 9, "stop": 9}, 10, 10),
    ],
)
def test_the_gradient_is_the_same_and_the_calls_are_those_that_are_left(grown, credit, whole, left):
    """A root of 5 trained steps, siblings of 3 and 1 and 1: steps 0 and 1 in one state, 2 and 3 in two, 4 in four.
    Width pruning keeps the step behind the last split, and here there is no further one."""
    policy, rows = grown
    chosen = objective(credit)
    (plain, spent), (pruned, fewer) = (gradient(policy, rows, chosen, prune) for prune in (False, True))
    assert plain.abs().max() > 0 and torch.allclose(pruned, plain, rtol=1e-4, atol=1e-7 * float(plain.abs().max()))
    assert (spent, fewer) == (whole, left)


def test_where_actions_are_not_their_own_nothing_is_left_out(grown):
    policy, rows = grown
    assert prunes(policy, objective("width_pruning"))
    assert not prunes(policy, objective(ratio="sequence", advantage="grpo"))
    assert not prunes(policy, objective(regularizers=[{"name": "gaussian_kl", "coefficient": 0.1}]))
    batch = Batch(rows.mask, rows.old_log_probs)
    assert without_idle(rows, batch, torch.zeros(rows.mask.shape))[0] is rows, "nothing weighs anything: as it is"
    assert without_idle(rows, batch, rows.mask.float())[1] is batch
    one = torch.zeros(rows.mask.shape)
    one[1, 2] = 1.0
    narrow, some = without_idle(rows, replace(batch), one)
    assert narrow.mask.sum() == some.mask.sum() == 1 and bool(narrow.mask[1, 2])
