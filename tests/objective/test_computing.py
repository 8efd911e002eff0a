"""The documented entry: what it accepts, what it refuses, and that it equals the formula written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmrl
from mmrl.errors import ConfigError
from mmrl.objective import Objective, compute, explain
from mmrl.record import Evaluation
from tests.objective.batches import near, random_batch

NAN = float("nan")


def tensors(**changes) -> dict:
    """Ragged groups, unequal lengths, one unscored rollout."""
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    old = -torch.rand(5, 4, generator=g, dtype=torch.float64) * mask
    reward = torch.tensor([1.0, 0.0, 0.5, NAN, 1.0], dtype=torch.float64)
    return {"mask": mask, "old_log_probs": old, "reward": reward, "group": torch.tensor([0, 0, 1, 1, 1]), **changes}


def current(batch: dict, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    step = 0.3 * torch.randn(5, 4, generator=g, dtype=torch.float64)
    return ((batch["old_log_probs"] + step) * batch["mask"]).requires_grad_()


def test_it_equals_the_formula_written_out():
    batch = tensors()
    new = current(batch)
    a = torch.tensor([0.5, -0.5, -0.25, 0, 0.25], dtype=torch.float64)
    spread = torch.tensor([0.5**0.5, 0.5**0.5, 0.125**0.5, 1, 0.125**0.5], dtype=torch.float64)
    a = (a / (spread + 1e-6))[:, None]
    ratio = (new - batch["old_log_probs"]).exp()
    objective = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
    kept = batch["mask"] & ~batch["reward"].isnan()[:, None]
    expected = -(objective * kept).sum() / kept.sum()
    config = {"trust_region": {"name": "clip", "low": 0.2, "high": 0.28}}
    loss = compute(config, batch, new)
    assert torch.allclose(loss, expected)
    assert torch.allclose(torch.autograd.grad(loss, new)[0], torch.autograd.grad(expected, new)[0])


def test_precomputed_advantages_of_rows_or_of_actions():
    batch = tensors()
    new = current(batch)
    ready = explain("grpo", batch, new).batch
    rows = {**batch, "reward": None, "trained": ready.trained}
    for advantage in (ready.advantage, ready.advantage[:, 0]):
        assert torch.allclose(compute("grpo", {**rows, "advantage": advantage}, new), compute("grpo", batch, new))


def test_success_stands_in_for_a_reward():
    batch = tensors(reward=torch.tensor([1.0, 0, 1, 0, 1]).double())
    flags = {**{k: v for k, v in batch.items() if k != "reward"}, "success": batch["reward"]}
    new = current(batch)
    for recipe in ("grpo", "pacs", "real", "disco"):
        assert torch.equal(compute(recipe, flags, new), compute(recipe, batch, new))


def test_a_recipe_its_mapping_and_its_objective_are_the_same():
    from mmrl.recipes import load_recipe

    batch = tensors(max_length=6)
    new = current(batch)
    recipe = load_recipe("dr_grpo")
    losses = [compute(r, batch, new) for r in ("dr_grpo", recipe.objective, Objective.of(recipe.objective))]
    assert losses[0] == losses[1] == losses[2]


def test_columns_may_come_with_either_side():
    batch = tensors()
    new, reference = current(batch), current(batch, seed=3).detach()
    config = {"regularizers": [{"name": "kl", "coefficient": 0.1}]}
    with_batch = compute(config, {**batch, "ref_log_probs": reference}, new)
    with_evaluation = compute(config, batch, {"log_probs": new, "ref_log_probs": reference})
    assert torch.equal(with_batch, with_evaluation)
    with pytest.raises(ConfigError, match="regularizer 'kl' reads the column 'ref_log_probs'"):
        compute(config, batch, new)


def test_garbage_outside_the_mask_is_never_read():
    batch = tensors()
    new = current(batch).detach()
    clean = compute("grpo", batch, new)
    dirty = {**batch, "old_log_probs": torch.where(batch["mask"], batch["old_log_probs"], torch.nan)}
    assert compute("grpo", dirty, torch.where(batch["mask"], new, torch.inf)) == clean


def test_half_precision_becomes_single():
    batch = tensors()
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    assert compute("grpo", half, current(batch).detach().bfloat16()).dtype == torch.float32


def test_missing_or_misshapen_input_is_named():
    batch = tensors()
    new = current(batch)
    with pytest.raises(ConfigError, match="old_log_probs"):
        compute("grpo", {"mask": batch["mask"]}, new)
    with pytest.raises(ConfigError, match="log_probs"):
        compute("grpo", batch, {"logits": new})
    with pytest.raises(ValueError, match=r"log_probs has shape \(5, 3\)"):
        compute("grpo", batch, new[:, :3])
    with pytest.raises(ValueError, match=r"reward has shape"):
        compute("grpo", {**batch, "reward": batch["reward"][:4]}, new)
    with pytest.raises(ConfigError, match="Further columns: rewards"):
        compute("grpo", {**{k: v for k, v in batch.items() if k != "reward"}, "rewards": batch["reward"]}, new)
    with pytest.raises(ConfigError, match="max_length"):
        compute("dr_grpo", batch, new)
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        compute("grop", batch, new)


def test_a_group_of_one_is_refused_with_a_reason():
    batch = tensors()
    new = current(batch)
    ungrouped = {k: v for k, v in batch.items() if k != "group"}
    for recipe in ("grpo", "rloo", "gspo", "pacs"):
        with pytest.raises(ConfigError, match="every group of this batch has one: give `group"):
            compute(recipe, ungrouped, new)
    for recipe in ("reinforce_plus_plus", "ngrpo", {"advantage": "none"}):
        assert torch.isfinite(compute(recipe, ungrouped, new)), "no group is needed"


def test_binary_rewards_are_their_own_success_flag():
    binary = torch.tensor([1.0, 0, 1, NAN, 0]).double()
    batch, new = tensors(reward=binary), current(tensors())
    flagged = {**batch, "success": binary}
    for recipe in ("psr_nsr_w_reinforce", "pacs", "disco", "xrpo"):
        assert torch.equal(compute(recipe, batch, new), compute(recipe, flagged, new))
    with pytest.raises(ConfigError, match="'psr_nsr_w_reinforce' reads 'success'"):
        compute("psr_nsr_w_reinforce", tensors(), new)
    with pytest.raises(ConfigError, match=r"needs them 0 or 1, got 0\.5"):
        compute("pacs", tensors(), new)


def test_a_recipe_by_name_meets_every_prompt_for_the_first_time():
    batch, new = tensors(), current(tensors())
    assert torch.equal(
        compute("dcpo_clipping", batch, new), compute("dcpo_clipping", {**batch, "prompt": batch["group"]}, new)
    )
    with pytest.raises(ConfigError, match="remembers prompts"):
        compute(Objective.of({"advantage": "dcpo_smooth"}), batch, new)


def test_what_is_no_tensor_is_named():
    with pytest.raises(ConfigError, match="reward is a list; expected a tensor"):
        compute("grpo", {**tensors(), "reward": [1.0, 0, 0, 1, 1]}, current(tensors()))


def test_raw_rewards_have_no_baseline():
    batch, new = tensors(), current(tensors())
    advantage = explain({"advantage": "none"}, batch, new).batch.advantage
    assert torch.equal(advantage[:, 0], batch["reward"].nan_to_num(0))
    corrected = {"shaping": ["noisy_verifiers"], "advantage": "none"}
    assert compute(corrected, batch, new) != compute({"advantage": "none"}, batch, new)
    standard = {"shaping": ["noisy_verifiers"], "advantage": {"name": "grpo", "eps": 0.0}}
    assert torch.allclose(compute(standard, batch, new), compute({"advantage": standard["advantage"]}, batch, new))


def test_what_a_function_requires_is_named():
    batch = tensors()
    with pytest.raises(ConfigError, match="'trloo' reads 'segment'"):
        compute({"advantage": "trloo"}, batch, current(batch))
    with pytest.raises(ConfigError, match="'gdpo_decoupled' reads 'components'"):
        compute({"advantage": "gdpo_decoupled"}, batch, current(batch))


def test_meaningless_combinations_are_refused_with_a_reason():
    whole = {"score": "log_ratio", "score_objective": "pacs"}
    for part in ({"credit": ["importance_correction"]}, {"ratio": "sequence"}, {"trust_region": "sapo"}):
        with pytest.raises(ConfigError, match="judges whole sequences"):
            Objective.of({**whole, **part})
    with pytest.raises(ConfigError, match="needs both"):
        Objective.of({"score": "log_ratio"})
    with pytest.raises(ConfigError, match="policy_weight"):
        Objective.of({"policy_weight": 0.5})
    with pytest.raises(ConfigError, match="did you mean 'aggregation'"):
        Objective.of({"agregation": "token_mean"})
    with pytest.raises(ConfigError, match="did you mean 'high'"):
        Objective.of({"trust_region": {"name": "clip", "hihg": 0.3}})
    Objective.of({**whole, "policy_weight": 0.5, "ratio": "sequence"})


def test_credit_that_would_be_averaged_away_is_refused():
    """A ratio of the whole row has one gradient for all its actions."""
    reason = "tells actions apart, would be averaged away: use ratio 'token' or 'gspo_token'"
    for part in (
        {"ratio": "sequence", "credit": ["delta_log_p"]},
        {"ratio": "holder", "credit": ["ace", "fipo"]},
        {"trust_region": "gmpo", "advantage": "reinforce_plus_plus"},
    ):
        with pytest.raises(ConfigError, match=reason):
            Objective.of(part)
    for part in (
        {"ratio": "sequence", "credit": ["ace"]},
        {"ratio": "gspo_token", "credit": ["delta_log_p"]},
        {"ratio": "full_sequence", "trust_region": "vespo", "credit": ["delta_log_p"]},
    ):
        Objective.of(part)


def test_advantages_of_a_group_leave_lone_rows_out_whatever_they_see_else():
    """These look at the whole batch, and yet compare the rollouts of one prompt."""
    batch = random_batch()
    lone = int((batch.group == 2).nonzero())
    for advantage in ("reinforce_plus_plus_baseline", "gdpo_decoupled", "grpo"):
        assert not explain({"advantage": advantage}, batch, near(batch)).batch.trained[lone]
    assert explain({"advantage": "reinforce_plus_plus"}, batch, near(batch)).batch.trained[lone]


def test_explain_shows_what_the_loss_was_made_of():
    batch = tensors()
    new = current(batch)
    result = explain("grpo", batch, new)
    objective = torch.minimum(
        (new - batch["old_log_probs"]).exp() * result.batch.advantage,
        (new - batch["old_log_probs"]).exp().clamp(0.8, 1.2) * result.batch.advantage,
    )
    assert torch.allclose(result.loss, -(result.weights * objective).sum())
    assert result.batch.trained.tolist() == [True, True, True, False, True]
    assert 0 < result.metrics["ratio/clip_fraction"] < 1


def test_functions_that_remember_do_so_across_calls_of_one_objective():
    batch = random_batch()
    objective = Objective.of({"advantage": "dcpo_smooth"})
    first = explain(objective, batch, batch.old_log_probs).batch.advantage
    second = explain(objective, replace(batch, reward=batch.reward.flip(0)), batch.old_log_probs).batch.advantage
    fresh = explain({"advantage": "dcpo_smooth"}, replace(batch, reward=batch.reward.flip(0)), batch.old_log_probs)
    assert not torch.allclose(second, fresh.batch.advantage)
    again = Objective.of({"advantage": "dcpo_smooth"})
    again.load_state_dict(objective.state_dict())
    assert again.state_dict() == objective.state_dict() and first.shape == second.shape


def test_it_is_reachable_from_the_package():
    assert mmrl.objective.compute is compute


DIFFERENTIABLE = [
    {"trust_region": "clip"}, {"trust_region": {"name": "clip", "dual": 1.5}}, {"trust_region": "none"},
    {"ratio": "sequence"}, {"ratio": "full_sequence"}, {"ratio": {"name": "holder", "start": -1.0, "end": -1.0}},
    {"ratio": {"name": "holder", "start": 2.0, "end": 2.0}}, {"ratio": {"name": "segment", "separators": [0, 3]}},
    {"trust_region": "sapo"}, {"trust_region": "gmpo"}, {"trust_region": "holder_token"}, {"trust_region": "dcpo"},
    {"trust_region": "etr"}, {"trust_region": "nsr_rescue"}, {"trust_region": "reinforce"},
    *({"regularizers": [{"name": n, "coefficient": 0.5}]} for n in ("opmd", "asymre")),
    *({"regularizers": [{"name": "kl", "coefficient": 0.5, "estimator": e}]} for e in ("k1", "k2", "k3")),
    {"regularizers": [{"name": "kl", "coefficient": 0.5, "importance": True}]},
]  # fmt: skip


@pytest.mark.parametrize("config", DIFFERENTIABLE, ids=str)
def test_gradients_equal_central_differences(config):
    """Every objective whose gradient is that of its value; the others are held to closed forms."""
    batch = replace(random_batch(), columns={"ref_log_probs": near(random_batch(), 8).detach()})
    new = near(batch)
    loss = compute(config, batch, Evaluation(new))
    (gradient,) = torch.autograd.grad(loss, new)
    for row, t in ((0, 0), (1, 2), (4, 1), (6, 0), (9, 0)):
        moved = []
        for step in (1e-6, -1e-6):
            shifted = new.detach().clone()
            shifted[row, t] += step * batch.mask[row, t]
            moved.append(compute(config, batch, shifted))
        assert gradient[row, t].item() == pytest.approx(((moved[0] - moved[1]) / 2e-6).item(), abs=1e-7)


def test_the_documented_example_runs():
    import re
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "objective.md").read_text()
    scope: dict = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], scope)
    assert torch.isfinite(scope["loss"]) and (scope["new"].grad != 0).any()
