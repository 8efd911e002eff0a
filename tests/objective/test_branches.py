"""BranchGRPO: values of states, advantages by depth, and what pruning leaves out."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.advantages.branches import branchgrpo, fused
from mmrl.objective.credit.pruning import depth_pruning, width_pruning
from mmrl.record import Batch

OWNER = torch.tensor([[0, 0, 0], [0, 0, 1], [2, 2, 2], [2, 2, 3]])
"""Two roots, three steps, a split behind step 2: leaves 1 and 3 go on from 0 and 2."""
REWARD = torch.tensor([0.1, 0.3, 0.5, 0.9])


def tree(reward=REWARD, **fields) -> Batch:
    fields = {"old_log_probs": torch.zeros(4, 3), "group": torch.zeros(4, dtype=torch.long)} | fields
    return Batch(mask=torch.ones(4, 3, dtype=torch.bool), owner=OWNER, reward=reward, **fields)


def near(value, expected):
    torch.testing.assert_close(value, torch.as_tensor(expected).to(value), rtol=0, atol=2e-5)


def test_states_are_worth_their_leaves_and_are_compared_by_depth():
    """Values .2 and .7 above the split; the four leaves are a depth of their own."""
    pair, leaves = [-0.70711, -0.70711, 0.70711, 0.70711], [-1.02470, -0.43916, 0.14639, 1.31747]
    near(branchgrpo(tree()), torch.tensor([pair, pair, leaves]).T)


def test_a_state_counts_once_however_many_leaves_it_has():
    """Three leaves below the first root, one below the second: at step 0 two states, .2 and .9."""
    owner = torch.tensor([[0, 0], [0, 1], [0, 2], [3, 3]])
    reward = torch.tensor([0.1, 0.2, 0.3, 0.9])
    batch = Batch(
        mask=torch.ones(4, 2, dtype=torch.bool), owner=owner, reward=reward, old_log_probs=torch.zeros(4, 2),
        group=torch.zeros(4, dtype=torch.long),
    )  # fmt: skip
    near(branchgrpo(batch)[:, 0], [-0.70711, -0.70711, -0.70711, 0.70711])


def test_fusion_by_path_weighs_leaves_by_their_log_probs():
    score = torch.tensor([-0.2, -0.1, -0.4, -0.3])
    near(fused(REWARD, torch.zeros(4, dtype=torch.long), score)[:1], [0.432328])
    near(fused(REWARD[:2], torch.zeros(2, dtype=torch.long), score[:2])[:1], [0.204996])
    near(branchgrpo(tree(), fusion="path", beta=0.0), branchgrpo(tree()))
    log_probs = torch.zeros(4, 3)
    log_probs[:, 2] = score
    by_path = branchgrpo(tree(old_log_probs=log_probs), fusion="path")
    near(by_path[:, 2], branchgrpo(tree())[:, 2])
    near(by_path[:, 0], [-0.70711, -0.70711, 0.70711, 0.70711])  # of two states the size does not matter, the sign does


def test_without_a_tree_it_is_the_group_advantage():
    owner = torch.arange(4)[:, None].expand(4, 3)
    batch = tree()
    batch.owner = owner
    normal = (REWARD - REWARD.mean()) / REWARD.std()
    near(branchgrpo(batch), normal[:, None].expand(4, 3))


def test_equal_values_lone_states_and_unscored_leaves_earn_nothing():
    assert not branchgrpo(tree(torch.full((4,), 0.4))).any()
    holes = tree(torch.tensor([0.1, torch.nan, 0.5, 0.9]))
    made = branchgrpo(holes)
    assert not made[1].any() and made.isfinite().all()
    near(made[[0, 2], 0], [-0.70711, 0.70711])
    apart = tree(group=torch.tensor([0, 0, 1, 1]))
    assert not branchgrpo(apart)[:, :2].any(), "one state of that depth in each tree"


def test_depth_pruning_moves_a_window_through_the_steps():
    def kept(step, **options):
        batch = Batch(mask=torch.ones(1, 8, dtype=torch.bool), old_log_probs=torch.zeros(1, 8), step=step)
        return depth_pruning(torch.ones(1, 8), batch, window=2, every=30, **options)[1][0].tolist()

    assert kept(0, start=3, stop=5) == kept(29, start=3, stop=5) == [1, 1, 1, 0, 0, 1, 1, 1]
    assert kept(30, start=3, stop=5) == [1, 1, 1, 1, 0, 0, 1, 1]
    assert kept(9000, start=3, stop=5) == [1, 1, 1, 1, 1, 0, 0, 1]
    assert kept(30, start=5, stop=3) == [1, 1, 1, 1, 0, 0, 1, 1], "the authors' code moves towards the noise"


@pytest.mark.parametrize(
    ("options", "late"), [({}, [0, 1, 0, 1]), ({"keep": "extremes"}, [1, 0, 0, 1]), ({"share": 0.5}, [0, 1, 0, 1])]
)
def test_width_pruning_keeps_shared_steps_the_split_and_the_best_leaf_of_a_parent(options, late):
    """The split is step 2; step 3 is the leaves' own behind it."""
    batch = Batch(
        mask=torch.ones(4, 4, dtype=torch.bool), owner=torch.cat([OWNER, OWNER[:, -1:]], 1), reward=REWARD,
        old_log_probs=torch.zeros(4, 4), group=torch.zeros(4, dtype=torch.long),
    )  # fmt: skip
    mask = width_pruning(torch.ones(4, 4), batch, **options)[1]
    assert mask[:, :3].all() and mask[:, 3].tolist() == late


def test_rows_that_share_nothing_are_their_own_parents():
    batch = tree()
    batch.owner = torch.arange(4)[:, None].expand(4, 3)
    assert width_pruning(torch.ones(4, 3), batch)[1].all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: branchgrpo(tree(), fusion="paths"), "path"),
        (lambda: width_pruning(torch.ones(4, 3), tree(), keep="bets"), "best"),
        (lambda: width_pruning(torch.ones(4, 3), tree(), share=0.7), "share=0.7"),
        (lambda: depth_pruning(torch.ones(4, 3), tree(), window=0), "window=0"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ConfigError, match=says):
        call()
