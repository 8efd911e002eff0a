"""Durian: worked numbers of both specs, levels that count a prompt once, degenerate levels."""

import pytest
import torch

from mmrl.objective.groups import quantile_level
from mmrl.record import Batch
from mmrl.stages import Bound


def durian(rewards: list[list[float]], images: list[float], confidence: list[float] | None = None, **parameters):
    rows = torch.tensor([r for group in rewards for r in group], dtype=torch.float64)
    group = torch.tensor([i for i, g in enumerate(rewards) for _ in g])
    scores = torch.tensor(confidence or [0.0] * len(rewards), dtype=torch.float64)[group]
    batch = Batch(
        mask=torch.ones(len(rows), 1, dtype=torch.bool), old_log_probs=scores[:, None], group=group, reward=rows,
        columns={"visual_entropy": torch.tensor(images, dtype=torch.float64)[group]},
    )  # fmt: skip
    return Bound.of("advantage", {"name": "durian", **parameters})(batch), batch


PERCEPTION = {"outcome": 0.0, "perception": 1.0, "reasoning": 0.0}
REASONING = {"outcome": 0.0, "perception": 0.0, "reasoning": 1.0}
ROWS = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_perceptual_levels_of_the_worked_batch():
    advantage, _ = durian(ROWS, [0.5, 1, 1.5, 2], **PERCEPTION)
    expected = [1.5, -0.5, -0.5, -0.5, *[0.483046] * 3, -1.449138, 0.966092, 0.966092, -0.966092, -0.966092, *[0.0] * 4]
    torch.testing.assert_close(advantage, torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_two_prompts_of_one_level_share_the_spread_of_all_their_rewards():
    advantage, _ = durian([[1] * 7 + [0], [1] * 4 + [0] * 4], [1.0, 1.0], **REASONING)
    assert advantage[7].item() == pytest.approx(-1.827813, abs=5e-6)
    assert advantage[8].item() == pytest.approx(1.044466, abs=5e-6)


def test_a_level_with_one_prompt_is_its_own_grpo():
    alone, _ = durian([[1, 0, 0, 0]], [1.0])
    torch.testing.assert_close(alone, torch.tensor([1.5, -0.5, -0.5, -0.5]).double(), atol=1e-5, rtol=0)


def test_confidence_bins_are_equal_counts_and_shrink_with_the_batch():
    rewards = [[i % 2, (i + 1) % 2] for i in range(24)]
    for row in range(0, 24, 2):
        rewards[row] = [0.0, 10.0 + row]
    confidence = [-float(i) for i in range(24)]
    fine, _ = durian(rewards, [1.0] * 24, confidence, **REASONING, bins=12)
    one, _ = durian(rewards, [1.0] * 24, confidence, **REASONING, bins=1)
    assert not torch.allclose(fine, one)
    small, _ = durian(rewards[:3], [1.0] * 3, confidence[:3], **REASONING, bins=12)
    pooled, _ = durian(rewards[:3], [1.0] * 3, confidence[:3], **REASONING, bins=1)
    torch.testing.assert_close(small, pooled)


def test_quantile_level_counts_a_prompt_once():
    group = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 3])
    values = torch.tensor([1.0, 1, 1, 1, 1, 1, 2, 3, 4])
    assert quantile_level(values, group, torch.tensor([0.5])).tolist() == [0] * 7 + [1, 1]


def test_batch_order_and_sharding():
    generator = torch.Generator().manual_seed(1)
    rewards = [torch.rand(4, generator=generator).tolist() for _ in range(8)]
    images = torch.rand(8, generator=generator).tolist()
    whole, batch = durian(rewards, images, images, bins=3)
    order = torch.randperm(32, generator=generator)
    bound = Bound.of("advantage", {"name": "durian", "bins": 3})
    torch.testing.assert_close(bound(batch.index(order)), whole[order])
    halves = torch.cat([bound(batch.index(torch.arange(16))), bound(batch.index(torch.arange(16, 32)))])
    assert not torch.allclose(halves, whole), "negative control: two shards apart are wrong, hence scope batch"


def test_unscored_rows_and_prompts_without_image_score():
    with_unscored, _ = durian([[1, 0, 0, float("nan")], [1, 1, 0, 0]], [1.0, 2.0])
    without, _ = durian([[1, 0, 0], [1, 1, 0, 0]], [1.0, 2.0])
    assert with_unscored[3] == 0
    torch.testing.assert_close(with_unscored[[0, 1, 2, 4, 5, 6, 7]], without)
    blind, _ = durian(ROWS, [float("nan")] * 4, **PERCEPTION)
    level, _ = durian(ROWS, [0.0] * 4, **PERCEPTION)
    torch.testing.assert_close(blind, level)
