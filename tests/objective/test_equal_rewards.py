"""Rewards that are all alike are worth nothing, to the last bit, to every advantage whose formula says so.

Means of float32 numbers are rounded: eight times .35 miss .35 by as much as they then deviate, and one over the other,
beside a small eps, is an advantage near 1 that nobody earned. The functions come from the registry.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.objective.advantages.group import whiten
from mmrl.objective.advantages.robust import ngrpo
from mmrl.objective.groups import group_average, group_mean, group_std
from mmrl.objective.shaping.metrics import flowse_grpo
from mmrl.stages import Bound, registered
from tests.objective.batches import fill, random_batch

NOT_CENTRED = {
    "none": "the reward itself",
    "psr_nsr_w_reinforce": "the outcome itself",
    "ma_rlhf": "the outcome against a critic",
    "ngrpo": "below the best there is, all are pushed down",
    "trloo": "rows of more turns earn more",
    "rank_grpo": "so do rows of more items",
    "interleaved_grpo": "and of longer segments",
    "vgpo": "the value itself is a part of it",
    "deepsearch": "a single end keeps its value",
    "pa_rl": "a share of a target, not centred; nobody is imitated where all are alike",
}
BOUNDED = {"spo_single_stream"}
"""Rewards in [0, 1] only."""
VARIANTS = {
    "grpo": [{"std": "batch", "eps": 1e-8}, {"ddof": 0, "eps": 1e-8}],
    "rloo": [{"std": "others"}],
    "vcpo": [{"std": True}],
    "mc_grpo": [{"scale": "std"}, {"fallback": False}],
    "pass_at_k": [{"std": True}],
    "gdpo_decoupled": [{"weights": {"accuracy": 0.3, "format": 1.7}, "eps": 1e-8}],
    "lightningrl": [{"accuracy": "accuracy", "speed": "format"}],
    "openvlthinkerv2_g2rpo": [{"pool": "group"}, {"pool": "task"}, {"per_component": True, "unit_variance": True}],
    "treepo": [{"segment": 2, "weighting": "size"}, {"segment": 2, "whiten": False}],
    "branchgrpo": [{"fusion": "path"}],
    "f_grpo": [{"std": True}],
    "riskpo": [{"quantiles": "batch", "bundle": 2}, {"credit": "sum_mean", "bundle": 2}],
}
CENTRED = [f for f in registered() if f.stage == "advantage" and f.name not in NOT_CENTRED]
CASES = [(f, choice) for f in CENTRED for choice in ({}, *VARIANTS.get(f.name, ()))]
every_advantage = pytest.mark.parametrize(
    ("function", "choice"), CASES, ids=[f"{f.name}{'-' if c else ''}{'-'.join(c)}" for f, c in CASES]
)
ANY = st.floats(-1000, 1000, width=32)
SHARE = st.floats(0, 1, width=32)


def alike(function, choice, worth: float):
    """Rows in groups of 1, 3, 4 and 5, all that is read of their worth is `worth`; one is unscored, one out."""
    bound = Bound.of("advantage", {"name": function.name, **choice})
    batch, _ = fill(random_batch(dtype=torch.float32), [bound])
    own = {"old_log_probs", "segment", "state", "branch", "episode", "sub", "score_gradient_norm", "visual_entropy"}
    columns = {
        n: v if n.partition("(")[0] in own else torch.full_like(v.float(), worth) for n, v in batch.columns.items()
    }
    missing = torch.arange(len(batch)) == 5
    reward = torch.full_like(batch.reward, worth).masked_fill(missing, torch.nan)
    return bound, replace(
        batch, reward=reward, success=torch.ones_like(reward), columns=columns,
        components={n: reward.clone() for n in batch.components}, counted=batch.counted & (torch.arange(13) != 10),
    )  # fmt: skip


@every_advantage
def test_a_batch_of_equal_rewards_is_worth_nothing(function, choice):
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    @given(SHARE if function.name in BOUNDED else ANY)
    def check(worth):
        bound, batch = alike(function, choice, worth)
        found = bound(batch)
        assert found.eq(0).all(), f"{worth!r}: {found.abs().max().item():g}"

    check()


@pytest.mark.parametrize(
    "function", [f for f in CENTRED if f.scope == "group" and f.name != "dcpo_smooth"], ids=lambda f: f.name
)
@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(worth=ANY, others=st.integers(0, 99))
def test_a_group_of_equal_rewards_is_worth_nothing_beside_others(function, worth, others):
    bound, batch = alike(function, {}, worth)
    apart = batch.group == 9
    noise = random_batch(others, dtype=torch.float32).reward

    def mixed(values):
        row = noise if values.dim() == 1 else noise[:, None].expand_as(values)
        return torch.where(apart.view(-1, *[1] * (values.dim() - 1)), row, values)

    batch = replace(batch, reward=mixed(batch.reward), components={n: mixed(v) for n, v in batch.components.items()})
    found = bound(batch)
    assert found[~apart].eq(0).all()
    assert found[apart].ne(0).any() or function.name in ("euphonium", "densegrpo"), "they read columns"


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(ANY, st.integers(1, 33), st.integers(0, 99))
def test_means_and_spreads_of_equal_values_are_exact_under_any_weights(worth, size, seed):
    weight = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    values, group = torch.full((size,), worth), torch.zeros(size, dtype=torch.long)
    for mean in (group_mean(values, group), group_average(values, weight + 0.1, group)):
        assert torch.equal(mean, values)
    assert group_std(values, group).eq(0).all()
    assert whiten(values[:, None].expand(size, 3), weight[:, None] > torch.tensor([0.0, 0.3, 0.6])).eq(0).all()
    rows = replace(random_batch(dtype=torch.float32), reward=values[:1].expand(13))
    assert ngrpo(rows, r_max=worth, virtual=size).eq(0).all()


def test_weighted_means_of_others_are_the_plain_formula_and_what_weighs_nothing_is_not_looked_at():
    values, weight = torch.tensor([1.0, 2.0, 4.0, 7.0, 7.0, 9.0]), torch.tensor([1.0, 3.0, 0.0, 1.0, 2.0, 0.0])
    assert group_average(values, weight, torch.tensor([0, 0, 0, 1, 1, 1])).tolist() == [1.75] * 3 + [7.0] * 3


def test_a_metric_without_spread_adds_nothing_whatever_its_size():
    """21.7 in float32 deviates from its mean by more than a millionth, which would divide it."""
    batch = random_batch(dtype=torch.float32)
    quality = batch.components["accuracy"]
    both = replace(batch, components={"a": quality, "flat": torch.full_like(quality, 21.7)})
    assert torch.equal(flowse_grpo(both), flowse_grpo(replace(batch, components={"a": quality})))
