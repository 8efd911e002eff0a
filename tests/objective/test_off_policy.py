"""Worked numbers of the corrections for another engine's or an older policy's data, and of routing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.objective import Objective, explain
from mmrl.objective.credit.off_policy import geometric_rejection, importance_correction, off_policy_mask, owpo
from mmrl.objective.learning_rates import effective_samples, effective_share
from mmrl.record import Evaluation
from mmrl.selection.routing import dypo_routing, lightningrl_filter, red_drop
from tests.objective.small import close, rows


def sampled(gaps: list[list[float]], advantages: list[float]):
    """Old log-probs that stand `gaps` above the engine's."""
    batch, new = rows([[0.0] * len(g) for g in gaps], advantages)
    width = batch.mask.shape[1]
    apart = torch.tensor([g + [5.0] * (width - len(g)) for g in gaps], dtype=torch.float64)
    batch.columns["sampler_log_probs"] = batch.old_log_probs - apart
    return batch, new


def test_equal_probabilities_correct_nothing():
    batch, _ = sampled([[0.0, 0.0], [0.0]], [1, -1])
    for level in ("token", "sequence", "geometric"):
        assert torch.equal(importance_correction(batch.advantage, batch, level=level)[0], batch.advantage)


def test_levels_and_modes():
    batch, _ = sampled([[0.5, 0.9], [-0.2, 0.1]], [1, -2])
    tokens = importance_correction(batch.advantage, batch, level="token")[0]
    assert close(tokens, [[math.exp(0.5), math.exp(0.9)], [-2 * math.exp(-0.2), -2 * math.exp(0.1)]])
    sequence, loss_mask = importance_correction(batch.advantage, batch)
    assert close(sequence, [[0, 0], [-2 * math.exp(-0.1)] * 2]), "exp(1.4) > 3 is dropped"
    assert torch.equal(loss_mask, batch.loss_mask), "and keeps its place in the denominator"
    cut = importance_correction(batch.advantage, batch, mode="truncate", high=2.0)[0]
    assert close(cut, [[2, 2], [-2 * math.exp(-0.1)] * 2])
    geometric = importance_correction(batch.advantage, batch, level="geometric")[0]
    assert close(geometric[0], [math.exp(0.7)] * 2)


def test_normalized_weights_average_one():
    batch, _ = sampled([[0.5, 0.9], [-0.2]], [1, 1])
    weights = importance_correction(batch.advantage, batch, level="token", normalize=True)[0]
    assert weights.sum() / 3 == pytest.approx(1.0)


def test_geometric_rejection_and_veto():
    batch, _ = sampled([[0.0005, -0.0005], [0.01, 0.0], [10.0, -10.0]], [1, 1, 1])
    kept = geometric_rejection(batch.advantage, batch)[0]
    assert close(kept, [[1, 1], [0, 0], [0, 0]])


def test_sequences_the_policy_left_are_silenced_only_when_negative():
    batch, _ = rows([[0.0, 0.0]] * 3, [-1, 1, -1])
    evaluation = Evaluation(batch.old_log_probs - torch.tensor([[0.1, 0.3], [0.1, 0.3], [0.05, 0.05]]))
    assert close(off_policy_mask(batch.advantage, evaluation, batch, delta=0.1)[0], [[0, 0], [1, 1], [-1, -1]])
    assert torch.equal(off_policy_mask(batch.advantage, Evaluation(batch.old_log_probs), batch)[0], batch.advantage)


def test_the_share_that_was_silenced_is_reported():
    batch, _ = rows([[-0.5, -0.5], [0.0, 0.0]], [-1, -1])
    result = explain({"credit": ["off_policy_mask"]}, batch, batch.old_log_probs + torch.tensor([[-0.5], [0.0]]))
    assert result.metrics["credit/off_policy_mask/silenced"] == 0.5
    assert result.metrics["credit/off_policy_mask/reweighted"] == 0


def owpo_weights(ahead: list[float], advantage: float) -> torch.Tensor:
    batch, _ = rows([[0.0] * len(ahead)], [advantage])
    batch.columns["ref_log_probs"] = batch.old_log_probs.clone()
    evaluation = Evaluation(batch.old_log_probs + torch.tensor([ahead], dtype=torch.float64))
    return owpo(batch.advantage, evaluation, batch)[0][0] / advantage


def test_owpo_speeds_up_behind_and_slows_down_ahead():
    assert close(owpo_weights([-1.0, 0.0, 1.0, 9.0], 2.0), [2 - math.exp(-1), 1, math.exp(-1), 0.1])
    assert close(owpo_weights([-1.0, 1.0], -2.0), [math.exp(-1), 2 - math.exp(-1)]), "mirrored for negatives"
    assert (owpo_weights([-30.0, 30.0], 1.0) > 0).all()


def test_effective_sample_size():
    weights = torch.tensor([4.0, 1, 1, 2])
    assert effective_share(weights).item() == pytest.approx(0.727273, abs=1e-6)
    batch, _ = sampled([[w] for w in weights.log().tolist()], [1] * 4)
    assert effective_samples(batch).item() == pytest.approx(0.852803, abs=1e-6)
    assert effective_samples(batch, target=0.5).item() == 1
    even, _ = sampled([[0.7]] * 3, [1] * 3)
    assert effective_samples(even).item() == pytest.approx(1)


def test_the_learning_rate_follows_the_rows_of_its_optimizer_step():
    batch, _ = sampled([[w] for w in torch.tensor([4.0, 1, 1, 2, 9]).log().tolist()], [1] * 5)
    batch = replace(batch, update=torch.tensor([0, 0, 0, 0, 1]))
    objective = Objective.of({"learning_rate": "effective_samples"})
    assert objective.learning_rate_factor(batch, 0) == pytest.approx(0.852803, abs=1e-6)
    assert objective.learning_rate_factor(batch, 1) == 1
    assert Objective.of({}).learning_rate_factor(batch, 0) == 1


def routed(success: list[float], expert: list[bool], group: list[int]):
    batch, new = rows([[0.0]] * len(success), success=torch.tensor(success).double(), group=torch.tensor(group))
    batch.reward = batch.success
    batch.columns["expert"] = torch.tensor(expert)
    return batch, new


def test_dypo_imitates_on_hard_prompts_and_skips_solved_ones():
    batch, _ = routed(
        [0, 0, 1, 1, 1, 1, 1, 0, 1], [False, False, True] * 3, [0, 0, 0, 1, 1, 1, 2, 2, 2]
    )  # fmt: skip
    selection = dypo_routing(batch)
    assert selection.trained.tolist() == [False, False, True, False, False, False, True, True, False]
    assert selection.counted.tolist() == [True, True, False] * 3


def test_dypo_loss_on_a_hard_prompt_is_imitation():
    batch, _ = routed([0, 0, 1], [False, False, True], [0, 0, 0])
    batch.columns["ref_log_probs"] = batch.old_log_probs
    assert explain("dypo", batch, batch.old_log_probs).loss.item() == pytest.approx(1.0), "-log-prob of the teacher"


def test_lightningrl_drops_prompts_without_either_signal():
    parts = {
        "accuracy": torch.tensor([0.0, 0, 1, 0, 1, 1]),
        "tokens_per_forward": torch.tensor([1.0, 2, 1, 2, 1.5, 1.505]),
    }
    batch, _ = rows([[0.0]] * 6, group=torch.tensor([0, 0, 1, 1, 2, 2]), components=parts)
    assert lightningrl_filter(batch).trained.tolist() == [False, False, True, True, False, False]


def test_surplus_negatives_are_dropped_at_random_and_the_mean_is_taken_again():
    reward = torch.tensor([1.0, 0, 0, 0, 0]).double()
    batch, _ = rows([[0.0]] * 5, reward=reward)
    kept = red_drop(batch).trained
    assert kept.sum() == 2 and kept[0]
    drops = {tuple(red_drop(replace(batch, step=s)).trained.tolist()) for s in range(20)}
    assert len(drops) == 4
    ready, _ = Objective.of({"group": ["red_drop"], "advantage": "dr_grpo"}).prepare(batch)
    assert sorted(ready.advantage[kept].flatten().tolist()) == [-0.5, 0.5]
