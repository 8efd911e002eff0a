"""A frozen vision tower runs once per prompt; one that trains runs in every pass."""

import pytest
import torch

from mmrl.randomness import Key
from mmrl.stages import View
from tests.policies.language.scenes import clip_prompts, gradients, mixed_prompts, relative_error, requests
from tests.policies.language.test_scoring import weighted

LORA = {"rank": 4, "alpha": 8.0}
FROZEN = [{"train_vision": False}, {"lora": LORA}]


def counted(policy) -> list[int]:
    """Patches that pass the tower from now on, one entry per call."""
    patches: list[int] = []
    policy.inner.core.model.visual.register_forward_pre_hook(lambda _, args: patches.append(len(args[0])))
    return patches


def step(policy, prompts):
    """A rollout, an old and a reference pass, and two epochs of updates."""
    rollouts = policy.rollout(requests(prompts), Key(0))
    policy.evaluate(rollouts, weights="old")
    policy.evaluate(rollouts, weights="reference")
    for _ in range(2):
        weighted(policy.evaluate(rollouts).log_probs).backward()
    return rollouts


@pytest.mark.parametrize("options", FROZEN, ids=["full", "lora"])
def test_each_prompt_passes_a_frozen_tower_once(make_policy, family, options):
    policy = make_policy(family, **options)
    patches = counted(policy)
    rollouts = step(policy, mixed_prompts())
    once = sum(len(e.media["pixel_values"]) for e in rollouts.encoded if e.media)
    assert sum(patches) == once
    policy.evaluate(rollouts, under=View.of("patch_black", fresh=False), weights="old")
    assert sum(patches) == 2 * once, "a view shows other pixels"


def test_a_tower_that_trains_is_never_reused(make_policy, family):
    policy = make_policy(family)
    patches = counted(policy)
    rollouts = step(policy, mixed_prompts())
    once = sum(len(e.media["pixel_values"]) for e in rollouts.encoded if e.media)
    assert sum(patches) == 5 * once


@pytest.mark.parametrize("options", FROZEN, ids=["full", "lora"])
def test_changes_neither_log_probs_nor_gradients(make_policy, family, options):
    results = []
    for reuse in (True, False):
        policy = make_policy(family, reuse_vision=reuse, **options)
        rollouts = step(policy, mixed_prompts())
        results.append((rollouts.old_log_probs, gradients(policy)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert relative_error(results[0][1], results[1][1]) < 1e-5


@pytest.mark.parametrize("path", ["on", "off"])
def test_videos_and_plain_rows(make_video_policy, family, path):
    results = []
    for reuse in (True, False):
        policy = make_video_policy(family, reuse_vision=reuse, train_vision=False, shared_prompt=path)
        rollouts = policy.rollout(requests(clip_prompts(), 2), Key(0))
        with torch.no_grad():
            scored = policy.evaluate(rollouts).log_probs
        assert (scored - rollouts.old_log_probs).abs().max() < 1e-5
        results.append(scored)
    assert torch.allclose(*results, atol=1e-5)


def test_views_of_a_frozen_tower_are_seen(make_policy, family):
    policy = make_policy(family, train_vision=False)
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    changed = policy.evaluate(rollouts, under=View.of("patch_black", fresh=False), weights="old").log_probs
    assert (changed - rollouts.old_log_probs).abs().amax(1)[:8].min() > 1e-3


def test_features_stay_with_the_policy_that_made_them(make_policy, family):
    """The same rollouts under another policy, whose tower trains: its own features, and their gradient."""
    frozen, training = make_policy(family, train_vision=False), make_policy(family)
    rollouts = frozen.rollout(requests(mixed_prompts()), Key(0))
    frozen.evaluate(rollouts)
    assert all(e.features is None for e in rollouts.encoded)
    training.evaluate(rollouts).log_probs.sum().backward()
    assert all(
        (p.grad != 0).any() for n, p in training.module.named_parameters() if "visual.blocks" in n and "weight" in n
    )


def test_features_go_with_their_prompts(make_policy):
    policy = make_policy(train_vision=False)
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    assert len(policy._features) == 3
    del rollouts
    assert len(policy._features) == 0
