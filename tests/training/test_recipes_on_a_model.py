"""Recipes whose functions ask the policy for something, on a real tiny vision-language model, for two steps."""

import math

import pytest
import torch

from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.policies.language.scenes import mixed_prompts


def score(outputs, prompts) -> Scores:
    """Something every seed disagrees on: whether an output's length is a multiple of three."""
    right = torch.tensor([float(len(o) % 3 == 0) for o in outputs])
    grade = torch.tensor([float(len(o) % 5 + 1) for o in outputs])
    return Scores({"accuracy": right, "predicted_score": grade}, right, right)


OTHERWISE = {"gtpo": {"credit": ["gtpo"]}}
"""An untrained model is less sure than the .7 nats above which the recipe drops every answer."""


def run(tmp_path, objective, rollout=(), **changes) -> list[dict]:
    from mmrl.pipelines.bases.models import tiny_vlm

    policy = VisionPolicy(*tiny_vlm("qwen3_vl", 0), LanguagePolicyConfig(model="tiny", max_new_tokens=10))
    settings = {"steps": 2, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-4, **changes}
    metrics: list[dict] = []
    trainer = Trainer(
        policy, Objective.of(objective), mixed_prompts() * 2, score, TrainingConfig(**settings), tmp_path,
        report=lambda step, values: metrics.append(values), rollout=rollout,
    )  # fmt: skip
    trainer.train()
    return metrics


@pytest.mark.parametrize(
    ("recipe", "shares"),
    [
        ("tor", {"credit/tor/silenced": (0.35, 0.65)}),
        ("vppo", {"credit/vppo/silenced": (0.6, 0.6)}),
        ("durian", {}),
        ("d3s", {"credit/d3s_tokens/silenced": (0.79, 0.81)}),
        ("dcpo_distribution", {"credit/dcpo_distribution/reweighted": (1, 1)}),
        ("gtpo", {"credit/gtpo/reweighted": (1, 1)}),
        ("lp_reg", {"regularizer/lp_reg": (0, 10)}),
        ("siren", {"regularizer/siren": (0, 1)}),
        ("papo", {"regularizer/papo": (-10, -1e-6)}),
        ("q_hawkeye", {"regularizer/q_hawkeye_perception": (-10, -1e-6)}),
        ("ace", {"credit/ace/reweighted": (0.1, 0.9)}),
        ("tw_grpo", {"credit/tw_grpo/reweighted": (0.5, 1)}),
        ("dgpo", {}),
        ("thr", {"credit/thr/silenced": (0.2, 0.95)}),
        ("resrl", {"credit/resrl/reweighted": (0.5, 1)}),
        ("delta", {"credit/delta/reweighted": (0.9, 1)}),
        ("self", {"group/trained_fraction": (0.25, 0.75)}),
    ],
)
def test_recipe_trains(tmp_path, recipe, shares):
    first, second = run(tmp_path, {**load_recipe(recipe).objective, **OTHERWISE.get(recipe, {})})
    assert math.isfinite(second["gradient_norm"]) and second["gradient_norm"] > 0
    for name, (low, high) in shares.items():
        assert low - 1e-6 <= first[name] <= high + 1e-6, f"{name}: {first[name]}"


def test_clip_v_reads_the_whole_distribution(tmp_path):
    credit = {"name": "entropy_dynamics_clip_v", "mu": 0.0, "max_share": 0.05}
    first, _ = run(tmp_path, {"advantage": "grpo", "credit": [credit]})
    assert 0 < first["credit/entropy_dynamics_clip_v/silenced"] <= 0.05 / 0.5


def test_xrpo_gives_more_rollouts_where_the_mean_reward_is_least_known(tmp_path):
    allocator = {"name": "xrpo_allocator", "average": 6, "explore": 0.1}
    first, _ = run(tmp_path, {"advantage": "grpo", "credit": ["xrpo"]}, rollout=allocator)
    assert first["rollouts"] == 4 * 6 and math.isfinite(first["gradient_norm"])


def test_rorecomp_adds_an_optimizer_step_for_the_rest(tmp_path):
    group = {"name": "rorecomp", "compensation": 1e9}
    metrics = run(tmp_path, {"group": [group], "advantage": "grpo"}, steps=3)
    assert metrics[0]["updates"] == 2 and metrics[0]["signal/trained_fraction"] == 1
    assert metrics[-1]["updates"] == 5, "annealed to nothing at the last step"
