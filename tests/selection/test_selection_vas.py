"""MMR1's sampling: the score, the two halves of a batch, and readings every few steps."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.selection.vas import Vas, promotion
from tests.selection.helpers import groups, solved


def test_the_score():
    assert [promotion(p, 0.0, (1.0, 0.0)) for p in (0.0, 0.5, 1.0)] == [0, 0.25, 0]
    assert promotion(0.5, 0.6, (0.8, 0.2)) == pytest.approx(0.32)


def scored(**options) -> Vas:
    """Row 0 is solved half the time, rows 1 and 2 never."""
    sampler = Vas(every=1, **options)
    sampler.observe([0, 1, 2], groups(solved(4), solved(0), solved(0)))
    return sampler


def test_half_of_a_batch_is_drawn_by_score_and_half_is_shuffled():
    batch = scored().select(10, 3, Key(0, 1))
    assert batch[:5] == [0] * 5
    assert sorted(batch[5:8]) == [0, 1, 2]
    assert Vas(share=0.0).select(10, 10, Key(0)) != list(range(10))
    assert Vas(share=1.0, every=1).weighted(7) == 7


def test_equal_scores_are_drawn_alike():
    sampler = Vas(share=1.0, every=1)
    sampler.observe([0, 1], groups(solved(8), solved(0)))
    drawn = sampler.select(400, 2, Key(0, 1))
    assert 150 < drawn.count(0) < 250


def test_scores_wait_for_a_reading():
    sampler = Vas(every=4)
    sampler.observe([0], groups(solved(4)))
    assert sampler.current(3) == {} and sampler.current(4) == {0: 0.25}


def test_momentum_keeps_a_part_of_the_old_score():
    sampler = Vas(momentum=0.75)
    sampler.observe([0], groups(solved(4)))
    sampler.observe([0], groups(solved(0)))
    assert sampler.waiting[0] == pytest.approx(0.75 * 0.25)


def test_diversity_is_a_component_of_the_rewards():
    sampler = Vas(diversity="text_diversity")
    sampler.observe([0], groups([1.0, 0.0], components={"text_diversity": torch.tensor([0.4, 0.8])}))
    assert sampler.waiting[0] == pytest.approx(0.8 * 0.25 + 0.2 * 0.6)
    with pytest.raises(ConfigError, match="unknown reward component 'text_diversity'"):
        sampler.observe([0], groups([1.0, 0.0]))
