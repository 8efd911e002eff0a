"""TRL's own loss code beside ours, on the same tensors: values and gradients.

`GRPOTrainer._compute_loss` runs unchanged on an object that carries the attributes it reads.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import mmrl  # noqa: F401  torchvision must be mended before trl is imported
from mmrl.objective import explain
from mmrl.record import Batch
from tests.objective.batches import near, random_batch

pytest.importorskip("trl")
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

CAP = 11


class Together:
    """The part of an accelerator the loss reads, for one process."""

    num_processes = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather

    def reduce(self, values: Tensor, reduction: str = "sum") -> Tensor:
        return values


def trl_loss(batch: Batch, advantages: Tensor, new: Tensor, loss_type: str, **settings) -> Tensor:
    """TRL's loss of one optimizer step made of one micro-batch."""
    args = SimpleNamespace(
        use_bias_correction_kl=settings.get("bias_correction", False), delta=settings.get("delta"),
        sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
        vespo_lambda_neg=2.0, steps_per_generation=1,
    )  # fmt: skip
    trainer = SimpleNamespace(
        args=args, accelerator=Together(), model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False, top_entropy_quantile=1.0, loss_type=loss_type, beta=settings.get("beta", 0.0),
        importance_sampling_level=settings.get("level", "token"), epsilon_low=settings.get("low", 0.2),
        epsilon_high=settings.get("high", 0.28), off_policy_mask_threshold=settings.get("opsm"),
        use_vllm="ratio" in settings, vllm_importance_sampling_correction=True, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, max_completion_length=CAP,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask, get_gamma_weights=GRPOTrainer.get_gamma_weights,
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
    )  # fmt: skip
    mask = batch.mask.to(new.dtype)
    inputs = {
        "prompt_ids": torch.zeros(len(batch), 1, dtype=torch.long), "prompt_mask": torch.ones(len(batch), 1),
        "completion_ids": torch.zeros_like(batch.actions), "completion_mask": mask, "advantages": advantages,
        "old_per_token_logps": batch.old_log_probs, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    if "ref_log_probs" in batch:
        inputs["ref_per_token_logps"] = batch["ref_log_probs"]
    if "ratio" in settings:
        inputs["importance_sampling_ratio"] = settings["ratio"]
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Complete groups, so that every row trains, as TRL has it."""
    batch = random_batch()
    group = torch.tensor([4, 4, 4, 7, 7, 7, 7, 9, 9, 9, 9, 2, 2])
    return replace(batch, group=group, max_length=CAP)


def row_advantages(batch: Batch) -> Tensor:
    plain = explain({"advantage": {"name": "grpo", "eps": 1e-4}}, batch, batch.old_log_probs).batch.advantage
    return plain.sum(1) / batch.mask.sum(1)


def compare(config: dict, batch: Batch, loss_type: str, **settings) -> None:
    new = near(batch, spread=0.4)
    ours = explain({"advantage": {"name": "grpo", "eps": 1e-4}, **config}, batch, new)
    (gradient,) = torch.autograd.grad(ours.loss, new)
    theirs = trl_loss(batch, row_advantages(batch), new, loss_type, **settings)
    (expected,) = torch.autograd.grad(theirs, new)
    assert torch.allclose(ours.loss, theirs, atol=1e-10)
    assert torch.allclose(gradient, expected, atol=1e-10)
    assert expected.abs().max() > 1e-4


HIGHER = {"name": "clip", "low": 0.2, "high": 0.28}
SEQUENCE = {"trust_region": HIGHER, "ratio": "sequence"}
CASES = {
    "grpo": ({"trust_region": HIGHER, "aggregation": "sequence_mean"}, "grpo", {}),
    "bnpo": ({"trust_region": HIGHER, "aggregation": "bnpo"}, "bnpo", {}),
    "dr_grpo": ({"trust_region": HIGHER, "aggregation": "constant"}, "dr_grpo", {}),
    "dapo": ({"trust_region": HIGHER, "aggregation": "token_mean"}, "dapo", {}),
    "luspo": ({**SEQUENCE, "aggregation": "sequence_sum"}, "luspo", {"level": "sequence"}),
    "gspo": ({**SEQUENCE, "aggregation": "sequence_mean"}, "grpo", {"level": "sequence"}),
    "cispo": ({"trust_region": {"name": "cispo", "high": 1.2}}, "cispo", {"high": 1.2}),
    "sapo": ({"trust_region": "sapo", "aggregation": "sequence_mean"}, "sapo", {}),
    "vespo": ({"trust_region": "vespo", "ratio": "full_sequence"}, "vespo", {}),
    "two-sided": ({"trust_region": {**HIGHER, "dual": 1.5}}, "dapo", {"delta": 1.5}),
    "opsm": ({"trust_region": HIGHER, "credit": [{"name": "off_policy_mask", "delta": 0.01}]}, "dapo", {"opsm": 0.01}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trl(name, batch):
    config, loss_type, settings = CASES[name]
    compare(config, batch, loss_type, **settings)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_the_kl_equals_trl(bias_correction, batch):
    anchored = replace(batch, columns={"ref_log_probs": near(batch, seed=9).detach()})
    kl = {"name": "kl", "coefficient": 0.3, "importance": bias_correction}
    config = {"trust_region": HIGHER, "regularizers": [kl]}
    compare(config, anchored, "dapo", beta=0.3, bias_correction=bias_correction)


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("mode", ["mask", "truncate"])
def test_the_correction_for_the_sampling_engine_equals_trl(level, mode, batch):
    """TRL's ratio, made as its rollout code makes it; the advantages are those before the correction."""
    engine = near(batch, seed=4, spread=0.5).detach()
    apart = (batch.old_log_probs - engine) * batch.mask
    ratio = (apart.sum(1, keepdim=True) if level == "sequence" else apart).exp()
    ratio = ratio.clamp(max=1.3) if mode == "truncate" else ratio.masked_fill(ratio > 1.3, 0.0)
    sampled = replace(batch, columns={"sampler_log_probs": engine})
    correction = {"name": "importance_correction", "level": level, "mode": mode, "high": 1.3}
    compare({"trust_region": HIGHER, "credit": [correction]}, sampled, "dapo", ratio=ratio)


def test_rloo_equals_trl(batch):
    """KL in the reward, leave-one-out baseline, PPO on the ratio of the whole sequence."""
    anchored = replace(batch, columns={"ref_log_probs": near(batch, seed=9).detach()})
    config = {
        "shaping": [{"name": "kl_in_reward", "beta": 0.05}], "advantage": "rloo", "ratio": "full_sequence",
        "trust_region": HIGHER, "aggregation": "sequence_mean",
    }  # fmt: skip
    new = near(batch, spread=0.1)
    ours = explain(config, anchored, new)
    (gradient,) = torch.autograd.grad(ours.loss, new)
    mask = batch.mask.to(new.dtype)
    paid = batch.reward - 0.05 * ((batch.old_log_probs - anchored["ref_log_probs"]) * mask).sum(1)
    others = [paid[(batch.group == g) & (torch.arange(len(paid)) != i)].mean() for i, g in enumerate(batch.group)]
    trainer = SimpleNamespace(
        aux_loss_enabled=False, epsilon_low=0.2, epsilon_high=0.28, model=SimpleNamespace(training=True),
        accelerator=Together(), _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(len(batch), 1, dtype=torch.long), "prompt_mask": torch.ones(len(batch), 1),
        "completion_ids": torch.zeros_like(batch.actions), "completion_mask": mask,
        "old_logps": (batch.old_log_probs * mask).sum(1), "advantages": paid - torch.stack(others),
    }  # fmt: skip
    theirs = RLOOTrainer._compute_loss(trainer, None, inputs)
    (expected,) = torch.autograd.grad(theirs, new)
    assert torch.allclose(ours.loss, theirs, atol=1e-10) and torch.allclose(gradient, expected, atol=1e-10)
    assert expected.abs().max() > 1e-4


def test_the_high_entropy_mask_equals_trl(batch):
    g = torch.Generator().manual_seed(2)
    entropy = torch.rand(batch.mask.shape, generator=g, dtype=torch.float64).float() * batch.mask
    accelerator = SimpleNamespace(pad_across_processes=lambda v, **k: v, gather=lambda v: v)
    theirs = GRPOTrainer.get_high_entropy_mask(SimpleNamespace(accelerator=accelerator), entropy, batch.mask, 0.7)
    chosen = {"name": "80_20_forking_tokens", "share": 0.3}
    certain = replace(batch, columns={"entropy": entropy})
    ours = explain({"advantage": {"name": "ngrpo", "r_max": 2.0}, "credit": [chosen]}, certain, batch.old_log_probs)
    assert torch.equal(ours.batch.advantage != 0, theirs)


def test_the_preset_is_what_trl_does_by_default(batch):
    from mmrl.recipes import load_recipe

    new = near(batch)
    ours = explain(load_recipe("trl").objective, batch, new)
    mean = torch.stack([batch.reward[batch.group == g].mean() for g in batch.group])
    std = torch.stack([batch.reward[batch.group == g].std() for g in batch.group])
    theirs = trl_loss(batch, (batch.reward - mean) / (std + 1e-4), new, "dapo", high=0.2)
    assert torch.allclose(ours.loss, theirs, atol=1e-10)


def test_a_different_cap_is_noticed(batch):
    with pytest.raises(AssertionError):
        compare({"trust_region": {"name": "cispo", "high": 1.2}}, batch, "cispo", high=1.3)
