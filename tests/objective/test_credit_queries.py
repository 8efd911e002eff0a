"""Query groups: worked numbers for the boxes of one answer, and what stays untouched."""

import pytest
import torch

from mmrl.errors import ConfigError
from tests.objective.test_credit_segments import LONG, batch_of, close, credit, rows


def batch(**fields):
    """Two answers: three queries of matches 1, .5 and 0, the first of two tokens; and one query alone."""
    return batch_of(
        (2, 5), segment=rows([0, 0, 1, 2, -1], [0, -1, -1, -1, -1], dtype=LONG),
        action_reward=rows([1, 1, 0.5, 0, 0], [0.5, 0, 0, 0, 0]), **fields,
    )  # fmt: skip


def test_the_queries_of_an_answer_are_compared_with_each_other():
    """Mean .5, deviation .5: one above, none, one below; a query alone has nobody to be better than."""
    result, mask = credit("dino_r1_grqo", batch(), eps=0.0)
    close(result, [[1, 1, 0, -1, 0], [0, 0, 0, 0, 0]])
    assert mask.all()


def test_over_the_group_all_its_queries_meet():
    """Matches 1, .5, 0 and .5: deviation .408248 of four."""
    result, _ = credit("dino_r1_grqo", batch(), eps=0.0, over="group")
    close(result, [[1.224745, 1.224745, 0, -1.224745, 0], [0, 0, 0, 0, 0]])


def test_it_is_added_to_the_advantage_of_the_answer_and_unscored_answers_add_nothing():
    own = torch.full((2, 5), 0.25).double()
    result, _ = credit("dino_r1_grqo", batch(), own, weight=2.0, eps=0.0)
    close(result[0], [2.25, 2.25, 0.25, -1.75, 0.25])
    lost, _ = credit("dino_r1_grqo", batch(reward=torch.tensor([float("nan"), 0.0]).double()), own, over="group")
    close(lost, own.tolist())


def test_over_anything_else_is_refused():
    with pytest.raises(ConfigError, match="over="):
        credit("dino_r1_grqo", batch(), over="batch")
