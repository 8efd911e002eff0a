"""GTPO: shared runs from both ends, entropy penalty, the first batch's entropy as memory."""

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.conflicts import shared_run
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(sequences: list[list[int]], group=None, entropy: list[float] | None = None) -> Batch:
    width = max(map(len, sequences))
    mask = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in sequences])
    actions = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
    columns = {} if entropy is None else {"entropy": torch.tensor(entropy).double()[:, None] * mask}
    group = torch.zeros(len(sequences), dtype=torch.long) if group is None else torch.tensor(group)
    return Batch(
        mask=mask, old_log_probs=torch.zeros(mask.shape).double(), actions=actions, group=group, columns=columns
    )


def weights(advantage: list[float], batch: Batch, **parameters) -> torch.Tensor:
    full = torch.tensor(advantage).double()[:, None] * batch.mask
    result, mask = Bound.of("credit", {"name": "gtpo", "gamma": 0.0, **parameters})(full, batch)
    assert torch.equal(mask, batch.mask)
    return torch.where(full != 0, result / full, torch.zeros_like(result))


def test_worked_example():
    lam = weights([1.0, -1.0], batch_of([[5, 6, 7, 9], [5, 6, 8, 4, 9]]))
    assert lam.tolist() == [[2, 2, 1, 2, 0], [0, 0, 1, 1, 0]]


def test_identical_answers_with_opposite_advantage():
    assert weights([1.0, -1.0], batch_of([[1, 2], [1, 2]])).tolist() == [[4, 4], [0, 0]]


def test_only_rollouts_of_the_group_and_with_advantage_take_part():
    batch = batch_of([[1, 2], [1, 2], [1, 2]], group=[0, 0, 1])
    assert weights([1.0, 0.0, -1.0], batch)[0].tolist() == [1, 1]
    assert not shared_run(batch.actions, batch.mask, batch.group, torch.tensor([1.0, 0.0, -1.0])).any()


def test_gaps_in_the_mask_are_closed():
    batch = batch_of([[1, 7, 2, 3], [1, 2, 4, 0]])
    batch.mask = torch.tensor([[True, False, True, True], [True, True, True, False]])
    run = shared_run(batch.actions, batch.mask, batch.group, torch.tensor([1.0, -1.0]))
    assert run.tolist() == [[True, False, True, False], [True, True, False, False]]


def test_entropy_term_drops_answers_that_became_unsure():
    bound = Bound.of("credit", "gtpo")
    first = batch_of([[1], [2], [3]], entropy=[0.2, 0.4, 0.3])
    advantage = torch.tensor([[1.0], [-1.0], [0.0]]).double()
    result, _ = bound(advantage, first)
    torch.testing.assert_close(result[:, 0], torch.tensor([1 - 0.02, -1 - 0.04, 0.0]).double())
    later = batch_of([[1], [2], [3]], entropy=[0.2, math.log(2) + 0.1, 0.3])
    assert bound(advantage, later)[0][1] == 0
    resumed = Bound.of("credit", "gtpo")
    resumed.state.load_state_dict(bound.state.state_dict())
    torch.testing.assert_close(resumed(advantage, later)[0], bound(advantage, later)[0])
    fresh = Bound.of("credit", "gtpo")
    unsure_from_the_start = batch_of([[1], [2], [3]], entropy=[2.0, 2.0, 2.0])
    assert fresh(advantage, unsure_from_the_start)[0][0] != 0


def test_the_authors_code_drops_unsure_answers_whatever_the_first_batch_was():
    batch = batch_of([[1, 2], [3, 4]], entropy=[1.0, 0.5])
    full = torch.tensor([1.0, -1.0]).double()[:, None] * batch.mask
    kept = {
        always: Bound.of("credit", {"name": "gtpo", "threshold": 0.7, "always": always})(full, batch)[0]
        for always in (True, False)
    }
    assert (kept[True][0] == 0).all() and (kept[True][1] != 0).all()
    assert (kept[False] != 0).all(), "the first batch's mean entropy is .75, not below it"


def test_needs_and_missing_actions():
    assert Bound.of("credit", {"name": "gtpo", "gamma": 0}).needs == {}
    batch = batch_of([[1], [2]])
    batch.actions = None
    with pytest.raises(ConfigError, match="token ids"):
        weights([1.0, -1.0], batch)
