"""Identities between methods: where two of them must agree, in value or in gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrl.objective import Objective, compute, explain
from mmrl.recipes import load_recipe
from mmrl.record import Batch
from mmrl.stages import registered
from tests.objective.batches import evaluation_of, fill, near, random_batch


def run(config: dict, batch: Batch, new: Tensor) -> tuple[Tensor, Tensor]:
    new = new.detach().clone().requires_grad_()
    objective = Objective.of({"advantage": "grpo", **config})
    filled, current = fill(replace(batch, columns=dict(batch.columns)), objective.stages)
    loss = explain(objective, filled, evaluation_of(new, current)).loss
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient


def same(a: dict, b: dict, batch: Batch, new: Tensor, value: bool = True) -> None:
    (loss_a, gradient_a), (loss_b, gradient_b) = run(a, batch, new), run(b, batch, new)
    if value:
        assert torch.allclose(loss_a, loss_b, atol=1e-12)
    assert torch.allclose(gradient_a, gradient_b, atol=1e-12)


@pytest.fixture
def batch() -> Batch:
    return random_batch()


@pytest.fixture
def constant_columns(batch) -> Batch:
    """Equal entropies, so that guided bounds are the plain ones."""
    return replace(batch, columns={"entropy": batch.mask.double()})


ON_POLICY = [
    {"trust_region": {"name": "clip", "low": 0.2, "high": 0.28}},
    {"trust_region": {"name": "clip", "dual": 3.0}},
    {"trust_region": "none"},
    {"trust_region": "reinforce"},
    {"ratio": "sequence", "trust_region": {"name": "clip", "low": 3e-4, "high": 4e-4}},
    {"ratio": "gspo_token"},
    {"trust_region": "cispo"},
    {"trust_region": "sapo"},
    {"ratio": "ctpo", "trust_region": "ctpo"},
    *({"ratio": {"name": "holder", "start": p, "end": p}} for p in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)),
    {"trust_region": "holder_token"},
    {"ratio": {"name": "segment", "separators": [0, 3]}},
    {"ratio": {"name": "segment", "separators": [0, 3], "through": False}},
    {"trust_region": "dhpo"},
    {"trust_region": {"name": "dhpo", "min_at": "mix"}},
    {"trust_region": "dcpo"},
    {"trust_region": "gppo"},
    {"trust_region": "gmpo"},
    {"ratio": "full_sequence", "trust_region": "vespo"},
    {"trust_region": "etr"},
    {"trust_region": "nsr_rescue"},
    {"trust_region": {"name": "sspo", "separators": [0, 3]}},
    {"trust_region": {"name": "rec", "weight": "ratio"}},
    {"trust_region": "minirl"},
]


@pytest.mark.parametrize("config", ON_POLICY, ids=str)
def test_on_policy_every_ratio_objective_has_the_gradient_of_grpo(config, batch):
    """At the policy that sampled, the gradient is `-w_it A_i`."""
    new = batch.old_log_probs.clone()
    shape = {"aggregation": "sequence_mean", **config}
    same(shape, {"aggregation": "sequence_mean"}, batch, new, value=False)


def test_gspo_equals_gspo_token_while_the_advantage_is_constant_in_a_row(batch):
    new = near(batch, spread=0.01)
    region = {"name": "clip", "low": 2e-3, "high": 2e-3}
    a, b = ({"ratio": r, "trust_region": region, "aggregation": "sequence_mean"} for r in ("sequence", "gspo_token"))
    same(a, b, batch, new)
    clipped = explain({"advantage": "grpo", **a}, batch, new).metrics["ratio/clip_fraction"]
    assert 0 < clipped < 1


def test_the_power_mean_at_zero_is_gspo(batch):
    new = near(batch)
    same({"ratio": {"name": "holder", "start": 1e-9, "end": 1e-9}}, {"ratio": "sequence"}, batch, new)
    a, b = (run({"ratio": r}, batch, new) for r in ({"name": "holder", "start": 1e-5, "end": 1e-5}, "sequence"))
    assert torch.allclose(a[0], b[0], atol=1e-5) and torch.allclose(a[1], b[1], atol=1e-5)


def test_the_power_mean_of_one_unclipped_is_grpo_unclipped(batch):
    power = {"ratio": {"name": "holder", "start": 1.0, "end": 1.0}, "trust_region": "none"}
    same(
        {**power, "aggregation": "sequence_mean"}, {"trust_region": "none", "aggregation": "sequence_mean"},
        batch, near(batch),
    )  # fmt: skip


def test_segments_of_one_action_are_tokens_and_one_segment_is_the_sequence(batch):
    new = near(batch)
    ones = replace(batch, columns={"segment": torch.where(batch.mask, batch.mask.long().cumsum(1) - 1, -1)})
    whole = replace(batch, columns={"segment": torch.where(batch.mask, 0, -1)})
    same({"ratio": "segment"}, {"ratio": "token"}, ones, new)
    same({"ratio": "segment"}, {"ratio": "sequence"}, whole, new)
    same({"ratio": {"name": "segment", "through": False}}, {"ratio": "gspo_token"}, whole, new)


@pytest.mark.parametrize("recipe", ["gspo", "gmpo", "sapo", "cispo", "ctpo", "holderpo"])
def test_away_from_ratio_one_a_method_is_not_clip(recipe, batch):
    """With clip's advantages and weights, so that ratio and trust region alone differ; on-policy they agree."""
    chosen = load_recipe(recipe).objective
    method = {key: chosen[key] for key in ("ratio", "trust_region")}
    clip = {"ratio": "token", "trust_region": {"name": "clip", "low": 0.2, "high": 0.2}}

    def relative(new: Tensor) -> float:
        (_, a), (_, b) = (run({**c, "aggregation": "sequence_mean"}, batch, new) for c in (method, clip))
        return float((a - b).norm() / b.norm())

    generator = torch.Generator().manual_seed(0)
    step = 0.1 * torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64)
    assert relative(batch.old_log_probs + step * batch.mask) > 1e-2
    assert relative(batch.old_log_probs) < 1e-6


def test_ctpo_without_bounds_on_single_actions_is_grpo_unclipped():
    batch = random_batch(width=7)
    single = replace(batch, mask=batch.mask & (torch.arange(7) == 0), loss_mask=batch.mask & (torch.arange(7) == 0))
    single = replace(single, old_log_probs=batch.old_log_probs * single.mask)
    wide = {"name": "ctpo", "low": 50.0, "high": 50.0, "dual": None}
    same({"ratio": "ctpo", "trust_region": wide}, {"trust_region": "none"}, single, near(single))


def test_gppo_has_the_value_of_dapo_and_its_gradient_off_the_clipped_actions(batch):
    new = near(batch, spread=0.6)
    clip, gppo = {"name": "clip", "low": 0.2, "high": 0.28}, {"name": "gppo", "dual": None}
    (loss_a, gradient_a), (loss_b, gradient_b) = (run({"trust_region": t}, batch, new) for t in (clip, gppo))
    assert torch.allclose(loss_a, loss_b, atol=1e-12)
    clipped = batch.mask & (gradient_a == 0) & (gradient_b != 0)
    assert clipped.any()
    assert torch.allclose(gradient_a[~clipped], gradient_b[~clipped], atol=1e-12)


def test_token_and_sequence_means_agree_on_equal_lengths():
    batch = random_batch()
    full = torch.ones_like(batch.mask)
    batch = replace(batch, mask=full, loss_mask=full, old_log_probs=-torch.rand(full.shape, dtype=torch.float64))
    new = near(batch)
    for other in ("sequence_mean", "bnpo"):
        same({"aggregation": "token_mean"}, {"aggregation": other}, batch, new)


def test_balanced_aggregation_is_a_sequence_mean_when_lengths_agree_inside_each_sign():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    for row, length in enumerate((2, 4, 4, 2)):
        mask[row, :length] = True
    rewards = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    batch = Batch(mask=mask, old_log_probs=-mask.double(), group=torch.zeros(4, dtype=torch.long), reward=rewards)
    same({"aggregation": "balanced"}, {"aggregation": "sequence_mean"}, batch, near(batch))


def test_balanced_aggregation_is_a_token_mean_when_mean_lengths_agree():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    for row, length in enumerate((1, 3, 2, 2)):
        mask[row, :length] = True
    rewards = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    batch = Batch(mask=mask, old_log_probs=-mask.double(), group=torch.zeros(4, dtype=torch.long), reward=rewards)
    same({"aggregation": "balanced"}, {"aggregation": "token_mean"}, batch, near(batch))


def test_cispo_whose_bounds_hold_every_ratio_has_the_gradient_of_the_unclipped_objective(batch):
    same({"trust_region": "cispo"}, {"trust_region": "none"}, batch, near(batch), value=False)


def test_dhpo_ends_in_grpo_and_gspo_token(batch):
    new = near(batch)
    same({"trust_region": {"name": "dhpo", "mix": 1.0}}, {"trust_region": "clip"}, batch, new)
    bounds = {"name": "clip", "low": 3e-4, "high": 4e-4}
    same({"trust_region": {"name": "dhpo", "mix": 0.0}}, {"ratio": "gspo_token", "trust_region": bounds}, batch, new)


def test_etr_and_sspo_without_elasticity_are_clip(batch):
    new = near(batch)
    same({"trust_region": {"name": "etr", "by_advantage": 0, "by_group": 0}}, {"trust_region": "clip"}, batch, new)
    flat = {"name": "sspo", "smallest": 1.0, "largest": 1.0, "separators": [0]}
    same({"trust_region": flat}, {"trust_region": "clip"}, batch, new)


def test_nsr_without_noise_is_dapo(batch):
    new = near(batch, spread=0.6)
    clip = {"name": "clip", "low": 0.2, "high": 0.28}
    same({"trust_region": {"name": "nsr_rescue", "noise": 0.0}}, {"trust_region": clip}, batch, new)


def test_rec_with_importance_weights_on_one_side_has_the_gradient_of_grpo(batch):
    same(
        {"advantage": "dr_grpo", "trust_region": {"name": "rec", "weight": "ratio"}},
        {"advantage": "dr_grpo", "trust_region": "clip"},
        batch, near(batch, spread=0.5), value=False,
    )  # fmt: skip


def test_asymre_is_reinforce_with_a_lower_baseline(batch):
    new = near(batch)
    pulled = {"advantage": "dr_grpo", "trust_region": {"name": "rec", "region": "none"}}
    _, gradient = run({**pulled, "regularizers": [{"name": "asymre", "coefficient": 0.1}]}, batch, new)
    lowered = explain(Objective.of(pulled), batch, new)
    shifted = replace(batch, advantage=lowered.batch.advantage + 0.1 * batch.mask)
    trained = lowered.batch.trained
    _, expected = run({**pulled}, replace(shifted, trained=trained), new)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_opmd_on_policy_has_the_gradient_of_reinforce(batch):
    new = batch.old_log_probs.clone()
    plain = {"trust_region": {"name": "rec", "region": "none"}}
    same({**plain, "regularizers": [{"name": "opmd", "coefficient": 0.1}]}, plain, batch, new)


BASELINED = {
    "grpo": {}, "dr_grpo": {}, "rloo": {}, "gui_libra": {"slope": 0.0}, "reinforce_plus_plus_baseline": {},
    "gdpo_decoupled": {"weights": {"accuracy": 1.0}}, "vcpo": {}, "dcpo_smooth": {},
}  # fmt: skip
MOVED = ("reinforce_plus_plus", "spo_single_stream")


@pytest.mark.parametrize("name", [*BASELINED, *MOVED])
def test_a_constant_added_to_the_rewards_of_a_prompt(name, batch):
    """Changes nothing under a baseline of the prompt; it does where there is none."""
    config = {"advantage": {"name": name, **BASELINED.get(name, {})}}
    more = batch.reward + torch.where(batch.group == 7, 0.05, 0.0)
    parts = {k: v + torch.where(batch.group == 7, 0.05, 0.0) for k, v in batch.components.items()}
    filled, _ = fill(batch, Objective.of(config).stages)
    before = explain(config, filled, batch.old_log_probs).batch.advantage
    after = explain(config, replace(filled, reward=more, components=parts), batch.old_log_probs).batch.advantage
    assert torch.allclose(before, after, atol=1e-9) == (name in BASELINED)


def test_luspo_is_length_times_gspo_on_equal_lengths():
    batch = random_batch()
    full = torch.ones_like(batch.mask)
    batch = replace(batch, mask=full, loss_mask=full, old_log_probs=-torch.rand(full.shape, dtype=torch.float64))
    new = near(batch, spread=1e-3)
    (gspo, a), (luspo, b) = (
        run({"ratio": "sequence", "aggregation": w}, batch, new) for w in ("sequence_mean", "sequence_sum")
    )
    assert torch.allclose(full.shape[1] * gspo, luspo) and torch.allclose(full.shape[1] * a, b)


def test_one_component_makes_gdpo_grpo_up_to_the_batch_scale(batch):
    accuracy = batch.components["accuracy"]
    config = {"advantage": {"name": "gdpo_decoupled", "weights": {"accuracy": 1.0}, "skip_single": True, "eps": 1e-6}}
    gdpo = explain(config, batch, batch.old_log_probs).batch.advantage
    grpo = explain({"advantage": "grpo"}, replace(batch, reward=accuracy), batch.old_log_probs).batch.advantage
    assert torch.allclose(gdpo, grpo, atol=1e-12)


def test_no_reference_weight_in_the_kl_mix_is_the_kl_to_the_sampler(batch):
    new = near(batch)
    base = replace(batch, columns={"ref_log_probs": batch.old_log_probs})
    kl, mix = ({"name": n, "coefficient": 1.0} for n in ("kl", "kl_convex"))
    same({"regularizers": [kl]}, {"regularizers": [{**mix, "share": 0.0}]}, base, new)
    same({"regularizers": [kl]}, {"regularizers": [{**mix, "share": 1.0}]}, base, new)


def test_every_recipe_of_this_library_composes():
    from mmrl.recipes import load_recipe, recipe_names

    for name in recipe_names():
        Objective.of(load_recipe(name).objective)


def test_the_registry_is_not_empty():
    assert len(registered("trust_region")) >= 15 and len(registered("advantage")) >= 15


def test_compute_of_a_name_equals_compute_of_its_parts(batch):
    new = near(batch, spread=1e-3)
    parts = {
        "advantage": "grpo", "ratio": "sequence", "aggregation": "sequence_mean",
        "trust_region": {"name": "clip", "low": 3e-4, "high": 4e-4},
    }  # fmt: skip
    assert compute("gspo", batch, new) == compute(parts, batch, new)
