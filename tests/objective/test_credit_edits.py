"""Drafts and edits: one terminal reward, and edits paid by what they changed."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.edits import changed, reflectdrive_2
from mmrl.record import Batch


def batch() -> Batch:
    """Two drafts of three tokens and their edits: the first changes one token and adds one, the second nothing."""
    actions = torch.tensor([[5, 6, 7, 0], [5, 5, 5, 0], [5, 9, 7, 8], [5, 5, 5, 0]])
    return Batch(
        mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool(),
        old_log_probs=torch.zeros(4, 4), group=torch.zeros(4, dtype=torch.long), member=torch.arange(4),
        counted=torch.tensor([False, False, True, True]), actions=actions,
        columns={"episode": torch.tensor([-1.0, -1, 0, 1]), "part": torch.tensor([0.0, 0, 1, 1])},
    )  # fmt: skip


ADVANTAGE = torch.tensor([[0.0] * 4, [0.0] * 4, [2.0, 2, 2, 2], [-2.0, -2, -2, 0]])


def test_which_tokens_are_new():
    assert changed([5, 6, 7], [5, 9, 7, 8]) == [False, True, False, True]
    assert changed([], [1]) == [True] and changed([1, 2], []) == []
    assert changed([1, 2, 3], [2, 3]) == [False, False], "what is left out needs no token"
    long = [1, 2, 3, 4] * 100
    assert sum(changed(long, [*long[:200], 9, *long[200:]])) == 1, "frequent tokens are kept like any"


def test_both_learn_from_the_end_and_the_edit_where_it_changed():
    made, mask = reflectdrive_2(ADVANTAGE, batch())
    assert made.tolist() == [[2, 2, 2, 0], [-2, -2, -2, 0], [0, 2, 0, 2], [0, 0, 0, 0]]
    assert torch.equal(mask, batch().loss_mask), "denominators stay"


def test_a_share_for_what_was_kept():
    assert reflectdrive_2(ADVANTAGE, batch(), kept=1.0)[0][2].tolist() == [2, 2, 2, 2]
    assert reflectdrive_2(ADVANTAGE, batch(), kept=0.25)[0][3].tolist() == [-0.5, -0.5, -0.5, 0]
    with pytest.raises(ConfigError, match="kept=2"):
        reflectdrive_2(ADVANTAGE, batch(), kept=2.0)


def test_the_order_of_rows_does_not_matter():
    order = torch.tensor([3, 0, 2, 1])
    made, _ = reflectdrive_2(ADVANTAGE[order], batch().index(order))
    assert torch.equal(made, reflectdrive_2(ADVANTAGE, batch())[0][order])


def test_a_draft_without_an_edit_is_its_own_end():
    alone = batch().index(torch.tensor([0]))
    alone.counted = torch.tensor([True])
    given = torch.tensor([[1.0, 1, 1, 0]])
    assert torch.equal(reflectdrive_2(given, alone)[0], given)
