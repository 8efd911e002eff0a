"""Calls of the transformer in a step, counted by hand: BranchGRPO's own tree, and what pruning leaves of it."""

from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.generator_calls import Tree, calls_lines, sampled, trained

TREE = Tree(2, (3, 6, 9))


def test_the_papers_tree_by_hand():
    """3 steps of 2, 3 of 4, 3 of 8 and 11 of 16 rows; the last step is not trained."""
    assert TREE.leaves == 16
    assert sampled(TREE, 20) == 3 * 2 + 3 * 4 + 3 * 8 + 11 * 16 == 218
    assert trained(TREE, range(19)) == 218 - 16
    assert sampled(Tree(16), 20) == 320 and sampled(Tree(16), 20, prefix=4) == 4 + 16 * 16


def test_pruning_by_hand():
    """Four steps of 16 rows; behind step 9 one leaf of two; a quarter at either end of 16 is 8."""
    assert trained(TREE, range(19), [("depth_pruning", {})]) == 202 - 4 * 16
    assert trained(TREE, range(19), [("width_pruning", {})]) == 202 - 9 * 8
    assert trained(TREE, range(19), [("width_pruning", {"keep": "extremes"})]) == 202 - 9 * 8
    both = [("depth_pruning", {"start": 10}), ("width_pruning", {})]
    assert trained(TREE, range(19), both) == 202 - 4 * 16 - 5 * 8


def lines(recipe, *changes):
    config = read_config({"recipe": recipe, "policy": {"model": "asset:tiny_flow"}}, changes, "flow")
    return " | ".join(calls_lines(config, Objective.of(config.objective)))


def test_recipes():
    assert "rollouts: 218; 16 rows apart 320 |   update: 202 forward" in lines("branchgrpo")
    pruned = lines("branchgrpo", 'objective.credit=["clip_advantage",{"name":"depth_pruning"}]')
    assert "update: 202 forward and backward, pruned to 138 by depth_pruning" in pruned
    assert "rollouts: 480 |" in lines("flow_grpo") and "update: 432 forward" in lines("flow_grpo"), (
        "24 x 10 x 2, 24 x 9 x 2"
    )
    assert "half of them are known of the rollouts, in the first of 2 optimizer steps" in lines("flow_grpo")
    assert "known" not in lines("flow_grpo", "policy.reuse_unconditional=false") + lines("mix_grpo")
    assert "rollouts: 80 to 300 |" in lines("mix_grpo"), "20 + 5 x 12 where the window is last, shared before it"
    assert "rollouts: 77 to 145; 12 rows apart 300" in lines("mix_grpo_flash"), "17 + 5 x 12, and 1 + (4 + 8) x 12"
    assert "update: 144 forward and backward, one for each draw" in lines("awm")
    assert lines("tempflow_grpo") == ""
