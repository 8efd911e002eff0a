"""A few recipes in each modality as `make recipes` trains all, and what it found against what `mmrl methods` says."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective, explain
from mmrl.pipelines.config import read_config
from mmrl.pipelines.methods import describe, method_json, methods_json
from mmrl.pipelines.run import check_config
from mmrl.recipes import load_recipe, recipe_names
from mmrl.stages import RENAMED, registered
from tests.objective.batches import evaluation_of, fill, random_batch
from tests.recipes import matrix, toys

FOUND = {(row["recipe"], row["modality"]): row for row in json.loads(matrix.RESULTS.read_text())}


@pytest.mark.parametrize(
    ("recipe", "modality", "acts"),
    [
        ("gspo", "vlm", ["ratio"]),
        ("gigpo", "vlm", []),
        ("papo", "video", []),
        ("grpo_guard", "flow", ["ratio"]),
        ("bgpo", "masked", []),
    ],
)
def test_recipe_trains(recipe, modality, acts):
    row = matrix.run_pair(recipe, modality)
    assert row["trains"], row["reason"]
    assert set(acts) <= set(row["acted"])
    assert row["toys"] == FOUND[recipe, modality]["toys"]


def test_a_step_without_signal_is_no_training():
    still = {"gradient_norm": 0.0, "update/moved_fraction": 0.0}
    assert "nothing moved" in matrix.problem_of([still, still])
    assert "gradient norms" in matrix.problem_of([still])


def test_the_table_has_every_pair_and_no_fault():
    assert sorted(FOUND) == sorted(matrix.pairs())
    refused = {name: row["reason"] for (name, _), row in FOUND.items() if not row["trains"]}
    assert not [reason for reason in refused.values() if reason.startswith("fault")]
    assert len({name for name, _ in FOUND}) - len(refused) >= 125
    assert set(refused) <= {"soft_grpo", "vcpo"}


def test_what_is_trainable_by_mmrl_methods_trained_without_toys():
    for method in (m for m in methods_json() if m["recipe"]):
        rows = [row for (name, _), row in FOUND.items() if name == method["name"]]
        alone = all(row["trains"] and not _made(row["toys"]) for row in rows)
        assert method["trainable"] == alone, (method["name"], method["missing"], [r["toys"] for r in rows])


def _made(given: list[str]) -> list[str]:
    """Toys other than rewards, of which every run needs some of its own, and than keys that only a user can fill."""
    return [toy for toy in given if not toy.startswith(("reward ", *KEYS))]


KEYS = ("policy.", "objective.", "rollout.", "rewards.")


@pytest.mark.parametrize("recipe", [*toys.SET, *toys.FUNCTIONAL])
def test_what_only_the_user_knows_is_asked_for_when_the_configuration_is_read(recipe):
    run = read_config({"recipe": recipe, "policy": {"model": "asset:tiny_vlm"}}, [], "vlm")
    with pytest.raises(ConfigError, match=f"recipe '{recipe}' leaves something to you: .* waits for its"):
        check_config(run, {})


@pytest.mark.parametrize("recipe", ["gspo", "gmpo", "sapo", "cispo", "ctpo", "holderpo"])
def test_away_from_a_ratio_of_one_its_gradient_is_not_that_of_clip(recipe):
    """At log-ratios of deviation .1; with one update a batch all of these are the same algorithm."""
    own = Objective.of(load_recipe(recipe).objective)
    clip = Objective.of({**load_recipe(recipe).objective, "ratio": "token", "trust_region": "clip"})
    assert apart(own, clip) > 1e-2
    assert apart(clip, clip) == 0


def apart(one: Objective, other: Objective) -> float:
    """Relative distance of two gradients."""
    first, second = gradient(one), gradient(other)
    return float((first - second).norm() / second.norm())


def gradient(objective: Objective) -> torch.Tensor:
    batch, current = fill(random_batch(rows=16), objective.stages)
    noise = torch.randn(batch.old_log_probs.shape, generator=torch.Generator().manual_seed(1)).to(batch.old_log_probs)
    new = (batch.old_log_probs + 0.1 * noise * batch.mask).requires_grad_()
    explain(objective, batch, evaluation_of(new, current)).loss.backward()
    return new.grad


def test_former_names_work_and_say_so():
    assert load_recipe("dense_grpo").method == "densegrpo" and "dense_grpo" not in recipe_names()
    assert read_config({"recipe": "dense_grpo", "policy": {"model": "x"}}, [], "flow").recipe == "densegrpo"
    assert describe("dense_grpo").startswith("dense_grpo is named densegrpo now")
    assert method_json("dense_grpo")["name"] == "densegrpo"
    assert not set(RENAMED) & ({f.name for f in registered()} | set(recipe_names()))


def test_deviations_are_shown():
    assert "deviates from its source: both KL coefficients grow from a hundredth" in describe("sage_grpo")
    assert method_json("sage_grpo")["deviates"] == load_recipe("sage_grpo").deviates
