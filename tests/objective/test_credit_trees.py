"""Prefix trees: TEMPO, SPO (chain and tree), TreePO on the specs' worked trees."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.prefixes import prefix_mean, prefix_nodes
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(sequences: list[list[int]], rewards: list[float], **fields) -> Batch:
    width = max(map(len, sequences))
    mask = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in sequences])
    fields.setdefault("group", torch.zeros(len(sequences), dtype=torch.long))
    fields.setdefault("old_log_probs", torch.full(mask.shape, -1.0).double() * mask)
    return Batch(
        mask=mask, actions=torch.tensor([s + [0] * (width - len(s)) for s in sequences]),
        reward=torch.tensor(rewards).double(), **fields,
    )  # fmt: skip


def credit(name: str, batch: Batch, **parameters):
    return Bound.of("credit", {"name": name, **parameters})(torch.zeros(batch.mask.shape).double(), batch)


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


WORKED = [[1, 2, 3], [1, 2, 4], [1, 5, 6], [1, 5, 7]]


class TestTempo:
    def test_worked_example(self):
        batch = batch_of(WORKED, [1, 0, 0, 0])
        plain = [[0.75, 1, 1.25], [-0.25, 0, -0.75], [-0.25, -0.5, -0.25], [-0.25, -0.5, -0.25]]
        close(credit("tempo", batch, std=False)[0], plain)
        close(credit("tempo", batch)[0] * 0.5, plain, atol=1e-5)

    def test_the_difference_telescopes_to_the_reward_minus_the_mean(self):
        generator = torch.Generator().manual_seed(0)
        sequences = torch.randint(0, 2, (8, 6), generator=generator).tolist()
        rewards = torch.rand(8, generator=generator).tolist()
        batch = batch_of([*sequences, [9, 9, 9, 9, 9, 9]], [*rewards, 0.5])
        advantage = credit("tempo", batch, std=False)[0]
        own = batch.reward - batch.reward.mean()
        leaf = prefix_mean(batch.reward, batch, torch.ones(9, dtype=torch.bool), "test")[:, -1]
        torch.testing.assert_close((advantage - own[:, None]).sum(1), leaf - batch.reward.mean())

    def test_equal_rewards_padding_groups_and_unscored_rows(self):
        assert (credit("tempo", batch_of(WORKED, [1, 1, 1, 1]))[0] == 0).all()
        nan = float("nan")
        batch = batch_of([*WORKED, [1, 2, 3, 4], [1, 2]], [1, 0, 0, 0, nan, 1], group=torch.tensor([0, 0, 0, 0, 0, 1]))
        advantage = credit("tempo", batch, std=False)[0]
        close(advantage[:4, :3], [[0.75, 1, 1.25], [-0.25, 0, -0.75], [-0.25, -0.5, -0.25], [-0.25, -0.5, -0.25]])
        assert (advantage[4:] == 0).all() and not advantage.isnan().any()

    def test_actions_are_required(self):
        batch = batch_of(WORKED, [1, 0, 0, 0])
        batch.actions = None
        with pytest.raises(ConfigError, match="action ids"):
            credit("tempo", batch)


class TestSegments:
    """A chain whose prefixes after 2, 4 and 6 tokens were continued, with V = .5, .75, .25, 1."""

    main = [1, 2, 3, 4, 5, 6, 7]

    def batch(self):
        others = [[9], [9, 8], [1, 2, 0], [1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 0]]
        # V(prompt) = mean, V(1 2), V(1 2 3 4): set by the rewards of the continuations
        return batch_of([self.main, *others], [1.0, 0, 1, 1, 0, 0])

    def test_segments_earn_the_gain_of_value_and_telescope(self):
        batch = self.batch()
        gained, mask = credit("spo_segment", batch, interval=2)
        value = prefix_mean(batch.reward, batch, torch.ones(6, dtype=torch.bool), "test")[0]
        close(value[[1, 3, 5]], [0.5, 1 / 3, 1])
        close(gained[0], [0, 0, -1 / 6, -1 / 6, 2 / 3, 2 / 3, 0])
        assert gained[0, [1, 3, 5, 6]].sum().item() == pytest.approx(1 - 0.5)
        assert torch.equal(mask.bool(), batch.mask)

    def test_sure_tokens_do_not_cut_and_leave_loss_and_denominator(self):
        batch = self.batch()
        batch.old_log_probs[0, :5] = 0.0
        gained, mask = credit("spo_segment", batch, interval=2)
        assert mask[0].tolist() == [0, 0, 0, 0, 0, 1, 1]
        close(gained[0], [0.5] * 7)
        assert credit("spo_segment", batch, interval=2, probability_mask=False)[1].sum() == batch.mask.sum()
        batch.old_log_probs[:] = 0.0
        assert torch.equal(credit("spo_segment", batch)[1].bool(), batch.mask), "nothing is unsure: all tokens"


class TestTreeSegments:
    def test_siblings_are_compared_and_edges_train_once(self):
        batch = batch_of([[1, 2], [1, 3], [1, 4]], [1, 0, 1])
        gained, mask = credit("spo_tree", batch, segment=1)
        close(gained[:, 1], [1 / 3, -2 / 3, 1 / 3])
        assert mask[:, 0].tolist() == [1, 0, 0], "the shared first edge is owned by the lowest member"
        assert (gained[:, 0] == 0).all(), "an only child gains nothing"

    def test_node_values_are_means_over_children_not_over_leaves(self):
        batch = batch_of([[1, 2], [1, 3], [4, 5]], [1, 0, 1])
        gained, _ = credit("spo_tree", batch, segment=1)
        # V(1) = .5, V(4) = 1, V(prompt) = .75
        close(gained[:, 0], [-0.25, 0, 0.25])
        scaled, _ = credit("spo_tree", batch, segment=1, baseline="grpo")
        close(scaled[2, 0], 0.25 / torch.tensor([0.5, 1.0]).std().item())

    def test_row_order_changes_nothing(self):
        batch = batch_of([[1, 2, 7], [1, 3], [4, 5, 6], [1, 2, 8]], [1, 0, 1, 0.5])
        order = torch.tensor([2, 3, 1, 0])
        straight = credit("spo_tree", batch, segment=1)
        shuffled = credit("spo_tree", batch.index(order), segment=1)
        for a, b in zip(shuffled, straight, strict=True):
            torch.testing.assert_close(a, b[order])


class TestTreePO:
    def test_worked_example(self):
        batch = batch_of([[0, 0], [0, 1], [1, 0], [1, 1]], [1, 0, 0, 0])
        tree = {"name": "treepo", "segment": 1, "whiten": False}
        sized = Bound.of("advantage", {**tree, "weighting": "size"})(batch)
        close(sized, [0.666667, -0.333333, -0.166667, -0.166667])
        close(Bound.of("advantage", tree)(batch), [0.625, -0.375, -0.125, -0.125])

    def test_whitening_counts_tokens(self):
        batch = batch_of([[0, 0, 0], [1]], [1, 0])
        white = Bound.of("advantage", {"name": "treepo", "segment": 5})(batch)[:, 0]
        tokens = torch.tensor([0.5, 0.5, 0.5, -0.5]).double()
        close(white, ((tokens - tokens.mean()) / tokens.std())[[0, 3]].tolist(), atol=1e-5)

    def test_nodes(self):
        batch = batch_of([[1, 2, 3], [1, 2], [1, 2, 4]], [0, 0, 0])
        nodes = prefix_nodes(batch, 2, "test")
        assert nodes.shape == (3, 3)
        assert len(set(nodes[:, 1].tolist())) == 1
        assert len(set(nodes[:, 2].tolist())) == 3
