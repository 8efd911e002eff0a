"""Worked numbers of the aggregations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective, compute, explain
from mmrl.record import Batch
from tests.objective.batches import near, random_batch
from tests.objective.small import close, rows


def weights(choice, lengths: list[int], advantages: list[float] | None = None, **fields) -> torch.Tensor:
    batch, _ = rows([[0.0] * n for n in lengths], advantages or [1.0] * len(lengths), **fields)
    return Objective.of({"aggregation": choice}).prepare(batch)[1]


def test_token_mean():
    assert close(weights("token_mean", [3, 1]), [[0.25] * 3, [0.25, 0, 0]])


def test_sequence_mean_and_empty_rows():
    assert close(weights("sequence_mean", [2, 1]), [[0.25, 0.25], [0.5, 0]])
    assert close(weights("sequence_mean", [2, 0, 1]), [[0.25, 0.25], [0, 0], [0.5, 0]])
    counted = {"name": "sequence_mean", "empty": "count"}
    assert close(weights(counted, [2, 0, 1]), [[1 / 6, 1 / 6], [0, 0], [1 / 3, 0]])


def test_constant_divides_by_the_runs_limit():
    once = weights("constant", [2, 1], max_length=5)
    assert close(once, [[0.1, 0.1], [0.1, 0]])
    assert torch.allclose(weights({"name": "constant", "length": 10}, [2, 1], max_length=5), once / 2)
    with pytest.raises(ConfigError, match="max_length"):
        weights("constant", [2, 1])


def test_a_longer_wrong_answer_gets_proportionally_more():
    each = weights("constant", [2, 6], [-1, -1], max_length=8).sum(1)
    assert each[1] == 3 * each[0]


def test_sequence_sum_and_only_token_mean():
    assert close(weights("sequence_sum", [2, 1]), [[0.5, 0.5], [0.5, 0]])
    assert close(weights("only_token_mean", [2, 1]), [[0.5, 0.5], [1, 0]])


def test_bnpo_depends_on_the_micro_batch():
    assert close(weights("bnpo", [3, 1]), weights("token_mean", [3, 1]))
    split = weights({"name": "bnpo", "rows": 1}, [3, 1])
    assert close(split, [[1 / 6] * 3, [1 / 2, 0, 0]])


def balanced(choice, advantages: list[float]) -> float:
    """The worked example: per-action losses -2 | -1 -1 -1 on positives, 1 1 1 1 on the negative."""
    lengths = [1, 3, 4, 2][: len(advantages)]
    losses = torch.tensor([[-2, 0, 0, 0], [-1, -1, -1, 0], [1, 1, 1, 1], [9, 9, 0, 0]], dtype=torch.float64)
    return float((weights(choice, lengths, advantages) * losses[: len(advantages)]).sum())


def test_balanced_aggregation():
    assert balanced("balanced", [1, 1, -1]) == pytest.approx(-0.5)
    assert balanced("sequence_mean", [1, 1, -1]) == pytest.approx(-0.666667, abs=1e-6)
    assert balanced("token_mean", [1, 1, -1]) == pytest.approx(-0.125)
    assert balanced("balanced", [1, 1, -1, 0]) == pytest.approx(-0.5)
    assert balanced({"name": "balanced", "count": "group"}, [1, 1, -1, 0]) == pytest.approx(-0.375)
    assert balanced("balanced", [0, 0, 0]) == 0


def test_balanced_aggregation_averages_over_prompts():
    two = weights("balanced", [1, 3, 2, 2], [1, -1, 1, -1], group=torch.tensor([0, 0, 1, 1]))
    assert close(two.sum(1), [0.25] * 4)


def test_justgrpo_divides_by_the_share_of_prompts_with_signal():
    groups = torch.tensor([0, 0, 1, 1])
    some = weights("constant_with_signal", [1] * 4, [1, -1, 0, 0], group=groups, max_length=2)
    assert close(some, 2 * weights("constant", [1] * 4, max_length=2))


def test_rows_token_mean_and_class_balance():
    success = torch.tensor([1.0, 0, 0]).double()
    assert close(weights("rows_token_mean", [2, 1, 3], success=success).sum(1), [1, 0, 0])
    experts = {"expert": torch.tensor([False, True, True])}
    assert close(
        weights({"name": "rows_token_mean", "rows": "expert"}, [2, 1, 3], columns=experts).sum(1), [0, 0.25, 0.75]
    )
    assert close(weights("class_balanced", [2, 1, 3], success=success).sum(1), [0.5, 0.25, 0.25])
    cut = torch.tensor([False, False, True])
    assert close(weights("class_balanced", [2, 1, 3], success=success, truncated=cut).sum(1), [0.5, 0.5, 0])


def test_every_optimizer_step_has_its_own_denominators():
    batch = random_batch()
    batch = replace(batch, update=(batch.group > 5).long())
    per_step = Objective.of({}).prepare(batch)[1]
    for update in (0, 1):
        assert per_step[batch.update == update].sum() == pytest.approx(1.0)


def test_a_regularizer_may_have_its_own_mean():
    batch = replace(random_batch(), columns={"ref_log_probs": random_batch().old_log_probs - 0.1})
    new = near(batch)
    kl = {"name": "kl", "coefficient": 1.0}
    base = {"aggregation": "sequence_mean"}
    plain = compute(base, batch, new)
    own = compute({**base, "regularizers": [{**kl, "aggregation": "token_mean"}]}, batch, new) - plain
    tokens = compute({"regularizers": [kl]}, batch, new) - compute({}, batch, new)
    assert torch.allclose(own, tokens)
    assert not torch.allclose(own, compute({**base, "regularizers": [kl]}, batch, new) - plain)


def test_rows_that_do_not_train_leave_the_denominators():
    batch = replace(random_batch(), trained=torch.arange(13) != 3)
    everything: Batch = explain({}, batch, batch.old_log_probs).batch
    assert not everything.trained[3] and not everything.trained[12], "dropped by the caller, and a group of one"
    assert explain({}, batch, batch.old_log_probs).weights.sum() == pytest.approx(1.0)


def test_a_shared_action_weighs_once_where_asked():
    """Three leaves; the first action is all of theirs, the second that of two: weights of 1/3, 1/2 and 1 parts."""
    owner = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 2, 2]])
    batch = Batch(mask=torch.ones(3, 3), old_log_probs=torch.zeros(3, 3), group=torch.zeros(3).long(), owner=owner)
    each, once = (
        Objective.of({"aggregation": {"name": "token_mean", "shared": s}}).weights(batch) for s in ("each", "once")
    )
    assert torch.allclose(each, torch.full((3, 3), 1 / 9))
    assert torch.allclose(once * 9, torch.tensor([[1 / 3, 1 / 2, 1], [1 / 3, 1 / 2, 1], [1 / 3, 1, 1]]))
    apart = replace(batch, group=torch.arange(3))
    assert torch.allclose(Objective.of({"aggregation": {"name": "token_mean", "shared": "once"}}).weights(apart), each)
    with pytest.raises(ConfigError, match="did you mean 'once'"):
        Objective.of({"aggregation": {"name": "token_mean", "shared": "onse"}})
