"""The recipes of credit, shaping, selection and perception methods run from end to end on plain tensors."""

from pathlib import Path

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective, explain
from mmrl.recipes import load_recipe, recipe_names
from mmrl.stages import registered
from tests.objective.batches import evaluation_of, fill, near, random_batch

RECIPES = (
    "80_20_forking_tokens", "ace", "arm_ada_grpo", "atlas_la_grpo", "calibrl", "carr_c_grpo", "d3s",
    "dcpo_distribution", "delta", "delta_log_p", "dgpo", "dr_irl_grpo_s", "dsdr", "durian", "dynframe_sd_grpo",
    "entropy_dynamics", "erpo", "fipo", "gigpo", "graph_grpo", "grpo_lambda", "gtpo", "hill", "lp_reg", "mc_grpo",
    "microcoder_grpo", "multi_objective_grpo", "ngrpo", "noisy_verifiers", "openvlthinkerv2_g2rpo", "pairing_wgrpo",
    "papo", "perceval", "prs_vspo", "psr_nsr_w_reinforce", "q_hawkeye", "rebel", "resrl", "riskpo", "rlvmr",
    "rorecomp", "rubric_anchors", "s_grpo", "salt", "searchllm", "self", "siren", "spo_segment", "tempo", "tgrl", "thr",
    "tor", "train_long_think_short", "treepo", "tw_grpo", "unlikeliness_reward", "vppo", "xrpo",
)  # fmt: skip
UNFINISHED = {
    "atlas_la_grpo": {"credit": [{"name": "atlas_la_grpo", "tokens": [3]}]},
    "dynframe_sd_grpo": {"credit": [{"name": "dynframe_sd_grpo", "marker": [1]}]},
}
"""Recipes that leave to the user what only the user knows."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_gives_a_finite_loss_with_a_gradient(name):
    assert name in recipe_names()
    objective = Objective.of({**load_recipe(name).objective, **UNFINISHED.get(name, {})})
    batch, current = fill(random_batch(rows=26), objective.stages)
    new = near(batch)
    loss = explain(objective, batch, evaluation_of(new, current)).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(new.grad).all() and new.grad.abs().sum() > 0


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_recipe_that_waits_for_the_user_says_what_it_waits_for(name):
    objective = Objective.of(load_recipe(name).objective)
    batch, current = fill(random_batch(rows=26), objective.stages)
    with pytest.raises(ConfigError, match="give it"):
        explain(objective, batch, evaluation_of(near(batch), current))


def test_the_guide_names_every_function_of_these_families():
    guide = (Path(__file__).parents[2] / "docs" / "methods-credit.md").read_text()
    families = (
        "credit",
        "shaping",
        "advantages.robust",
        "advantages.risk",
        "advantages.difficulty",
        "advantages.trees",
    )
    modules = [f"mmrl.objective.{f}" for f in families]
    modules += ["mmrl.selection.groups", "mmrl.selection.recomposition", "mmrl.objective.regularizers.entropy"]
    named = [f.name for f in registered() if f.function.__module__.startswith(tuple(modules))]
    assert len(named) > 60
    assert [name for name in named if f"`{name}`" not in guide] == []
