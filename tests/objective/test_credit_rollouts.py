"""Factors on whole rollouts: worked numbers, rows they must not touch."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.rollouts import component
from mmrl.record import Batch
from mmrl.stages import Bound


def batch_of(old, **fields) -> Batch:
    old = torch.as_tensor(old, dtype=torch.float64)
    old = old[:, None] if old.dim() == 1 else old
    fields.setdefault("mask", torch.ones(old.shape, dtype=torch.bool))
    for name in ("success", "reward"):
        if name in fields:
            fields[name] = torch.tensor(fields[name], dtype=torch.float64)
    for name in ("group", "task"):
        fields[name] = torch.tensor(fields.get(name, [0] * len(old)))
    return Batch(old_log_probs=old, **{"reward": torch.zeros(len(old)).double(), **fields})


def credit(name: str, advantage, batch: Batch, **parameters) -> torch.Tensor:
    advantage = torch.tensor(advantage, dtype=torch.float64)[:, None].expand(batch.mask.shape)
    result, mask = Bound.of("credit", {"name": name, **parameters})(advantage, batch)
    assert torch.equal(mask, batch.loss_mask)
    return result


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


def test_ace_multipliers():
    batch = batch_of([-5.0, 0, 1, 5, 20], columns={"ref_log_probs": torch.zeros(5, 1).double()})
    values = credit("ace", [-1.0] * 5, batch)[:, 0]
    close(-values[:4], [1.006715, 1.693147, 2.313262, 6.006715])
    assert (-values).diff().gt(0).all(), "monotone in the confidence shift"
    close(-values[4], -credit("ace", [-1.0] * 5, batch_of([10.0] * 5, columns=batch.columns))[4, 0].item())
    close(-credit("ace", [-1.0] * 5, batch, gate="relu")[:4, 0], [1, 1, 2, 6])
    close(credit("ace", [0.5] * 5, batch)[:, 0], [0.5] * 5)
    with pytest.raises(ConfigError, match="softplus"):
        credit("ace", [-1.0] * 5, batch, gate="softmax")


def test_ace_length_norm_divides_the_log_ratio_by_the_length():
    batch = batch_of([[1.0, 1.0]], columns={"ref_log_probs": torch.zeros(1, 2).double()})
    close(-credit("ace", [-1.0], batch)[0, 0], 2.313262)
    close(-credit("ace", [-1.0], batch, length_norm=False)[0, 0], 1 + 2.126928)


def test_xrpo_sharpens_right_rollouts_that_are_unlikely():
    batch = batch_of([-0.2, -0.4, -1.2, -0.6], success=[1, 0, 1, 0])
    close(credit("xrpo", [1.0, -1, 1, -1], batch)[:, 0], [1, -1, 1.451188, -1])
    close(credit("xrpo", [1.0, -1, 0.1, -1], batch)[2, 0], 0.15)
    close(credit("xrpo", [1.0, 1, 1, 1], batch_of([-0.2, -0.4, -1.2, -0.6], success=[1, 0, 0, 0]))[2, 0], 1.0)


def test_q_hawkeye_weighs_down_prompts_the_rollouts_disagree_on():
    scores = torch.tensor([3.0, 4, 5, 2, 2, 1, 5, 1, 5, 4, 4]).double()
    group = [0] * 5 + [1] * 4 + [2] * 2
    batch = batch_of([0.0] * 11, group=group, components={"predicted_score": scores})
    close(credit("q_hawkeye_uncertainty", [1.0] * 11, batch)[[0, 5, 9], 0], [0.93426, 0.81873, 1], atol=1e-5)
    whole = batch.components["predicted_score"]
    named = replace(batch, components={"q_hawkeye": whole, "q_hawkeye/predicted_score": whole})
    assert torch.equal(component(named, "predicted_score", "x"), whole), "a part of a reward that has parts"
    with pytest.raises(ConfigError, match="may be a/score or b/score; say which"):
        component(replace(batch, components={"a/score": whole, "b/score": whole}), "score", "x")
    with pytest.raises(ConfigError, match="predicted_score"):
        credit("q_hawkeye_uncertainty", [1.0], batch_of([0.0]))


def test_q_hawkeye_counts_parsed_predictions_only():
    nan = float("nan")
    parts = {"predicted_score": torch.tensor([1.0, 5, nan, 9, nan]).double()}
    batch = batch_of([0.0] * 5, group=[0, 0, 0, 1, 1], components=parts)
    close(credit("q_hawkeye_uncertainty", [1.0] * 5, batch)[[0, 3], 0], [0.81873, 1], atol=1e-5)


def test_dr_irl_scaling():
    hardness, gap = torch.tensor([0.2, 0.4, 0.6]).double(), torch.zeros(3).double()
    batch = batch_of([0.0] * 3, components={"hardness": hardness, "gap": gap})
    close(credit("dr_irl_grpo_s", [1.0] * 3, batch)[:, 0], [0.918399, 1, 1.078453])
    gap = torch.tensor([0.5, 0.4, 3, 0.3]).double()
    batch = batch_of([0.0] * 4, components={"hardness": torch.full((4,), 0.3).double(), "gap": gap})
    close(credit("dr_irl_grpo_s", [1.0] * 4, batch, tau=1.0)[:, 0], [0.808191] * 4)


def test_dr_irl_without_a_demonstration_and_with_nothing_kept():
    nan = float("nan")
    parts = {"hardness": torch.tensor([0.3, nan]).double(), "gap": torch.tensor([0.1, nan]).double()}
    close(credit("dr_irl_grpo_s", [1.0, 2.0], batch_of([0.0] * 2, components=parts))[:, 0], [1, 2])
    parts = {"hardness": torch.zeros(2).double(), "gap": torch.tensor([-1.0, 1.0]).double()}
    assert (credit("dr_irl_grpo_s", [1.0] * 2, batch_of([0.0] * 2, components=parts), tau=0.5) == 0).all()


class TestConditionalTruncation:
    def batch(self, ids, success, truncated=True, seed=0):
        ids = torch.tensor([ids])
        return batch_of(
            torch.zeros(ids.shape), actions=ids, success=[success], truncated=torch.tensor([truncated]), seed=seed
        )

    def test_only_truncated_right_and_not_repeating_answers_are_silenced(self):
        silence = {"share": 1.0, "repeat": 2}
        assert (credit("microcoder_truncation", [1.0], self.batch([1, 2, 3, 4], 1), **silence) == 0).all()
        for kept in (
            self.batch([1, 2, 3, 4], 0), self.batch([3, 4, 3, 4], 1), self.batch([1, 2, 3, 4], 1, truncated=False),
        ):  # fmt: skip
            assert (credit("microcoder_truncation", [1.0], kept, **silence) == 1).all()

    def test_about_the_asked_share_is_silenced(self):
        silenced = [
            (credit("microcoder_truncation", [1.0], self.batch([1, 2], 1, seed=s), share=0.3) == 0).all().item()
            for s in range(200)
        ]
        assert 0.2 < sum(silenced) / 200 < 0.4


def test_vspo_smooths_prompts_that_were_sampled_again():
    batch = batch_of([0.0] * 6, group=[0, 0, 1, 1, 2, 2], prompt=torch.tensor([5, 5, 5, 5, 9, 9]))
    half = 2**-0.5
    close(credit("vspo_smoothing", [1.0] * 6, batch)[:, 0], [half] * 4 + [1, 1])
    close(credit("vspo_smoothing", [1.0] * 6, batch, smooth="copies", cap=0.4)[:, 0], [0.4] * 6)
