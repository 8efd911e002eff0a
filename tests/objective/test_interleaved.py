"""Segments of text and pictures: worked numbers, and the same loss for both kinds of actions."""

import pytest
import torch

from mmrl.batch import KINDS, Batch
from mmrl.objective import Objective, compute
from mmrl.objective.advantages.interleaved import interleaved_grpo

SEGMENT = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 1, -1, -1, -1]])
REWARD = torch.tensor([[0.0, 0.2, 0, 0, 0.8, 0], [0.6, 0, 0.4, 0, 0, 0]], dtype=torch.float64)
MASK = SEGMENT >= 0


def batch(reward=REWARD, group=(0, 0)):
    columns = {"segment": SEGMENT, "action_reward": reward}
    return Batch(MASK, torch.zeros(MASK.shape), group=torch.tensor(group), reward=torch.zeros(2), columns=columns)


def test_by_hand():
    """All four rewards have mean .5 and deviation .2236: -1.3416, 1.3416, .4472, -.4472; each earns what follows."""
    a = interleaved_grpo(batch(), eps=0.0)
    expected = [[0, 0, 1.341641, 1.341641, 1.341641, 0], [0, -0.447214, -0.447214, 0, 0, 0]]
    assert torch.allclose(a, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_groups_are_apart_and_equal_rewards_say_nothing():
    alone = interleaved_grpo(batch(group=(0, 1)), eps=0.0)
    assert alone[0, 0] == pytest.approx(0.0) and alone[0, 2] == pytest.approx(1.0)
    flat = interleaved_grpo(batch(torch.where(REWARD > 0, 0.5, 0.0)))
    assert flat.abs().max() == 0


def test_one_trajectory_two_likelihoods_one_loss():
    """Words and denoising steps of one row: the advantage goes over all segments, and each kind has its own mean. At
    ratio 1 the gradient of an action is -A / (actions of its kind in the row x rows)."""
    kind = torch.where(SEGMENT == 1, KINDS.index("transition"), KINDS.index("tokens"))
    advantage = interleaved_grpo(batch(), eps=0.0)
    own = {"aggregation": "sequence_mean", "ratio": "token"}
    recipe = {"kinds": {"tokens": own, "transition": {**own, "coefficient": 0.5}}}
    new = torch.zeros(MASK.shape, dtype=torch.float64, requires_grad=True)
    values = {"mask": MASK, "old_log_probs": torch.zeros(MASK.shape, dtype=torch.float64), "kind": kind,
              "reward": torch.zeros(2), "group": torch.tensor([0, 0]), "advantage": advantage}  # fmt: skip
    compute(recipe, values, new).backward()
    words, steps = torch.tensor([[2.0], [1.0]]), torch.tensor([[3.0], [2.0]])
    expected = -advantage / 2 * torch.where(SEGMENT == 1, 0.5 / steps, 1 / words)
    assert torch.allclose(new.grad, expected * MASK, atol=1e-9)


def test_an_advantage_above_all_kinds_sees_the_whole_row():
    """What a picture earns goes to the words before it, though each kind has a loss of its own; an advantage that a
    kind names sees its own actions alone."""
    kind = torch.where(SEGMENT == 1, KINDS.index("transition"), KINDS.index("tokens"))
    rows = batch()
    rows.columns["kind"] = kind
    over_all = Objective.of({"advantage": "interleaved_grpo", "kinds": {"tokens": {}, "transition": {}}})
    found = over_all.assess(rows).advantage
    assert torch.allclose(found.double(), interleaved_grpo(batch()), atol=1e-6)
    apart = Objective.of(
        {"advantage": "interleaved_grpo", "kinds": {"tokens": {"advantage": "grpo"}, "transition": {}}}
    )
    rows.reward = torch.tensor([1.0, 0.0], dtype=torch.float64)
    words = SEGMENT == 0
    assert apart.assess(rows).advantage[words].tolist() == pytest.approx([2**-0.5] * 2 + [-(2**-0.5)], abs=1e-3)
