"""Tiny real models with fan-in weights, and rollouts to score."""

from __future__ import annotations

import pytest

from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from tests.policies.language.qwen2_vl import tiny_qwen2_vl
from tests.policies.language.scenes import FAMILIES, clip_prompts, mixed_prompts, read_made_clip, requests


@pytest.fixture(scope="session")
def tiny():
    """`tiny(family)` -> a fresh (model, processor)."""
    from mmrl.pipelines.bases.models import tiny_vlm

    def build(family: str = "qwen3_vl", seed: int = 0):
        return tiny_qwen2_vl(seed) if family == "qwen2_vl" else tiny_vlm(family, seed)

    return build


@pytest.fixture(scope="session")
def make_policy(tiny):
    def make(family: str = "qwen3_vl", **options) -> VisionPolicy:
        options = {"model": "tiny", "max_new_tokens": 10} | options
        return VisionPolicy(*tiny(family), LanguagePolicyConfig(**options))

    return make


@pytest.fixture(scope="session")
def make_video_policy(tiny):
    def make(family: str = "qwen3_vl", **options) -> VideoPolicy:
        options = {"model": "tiny", "max_new_tokens": 8} | options
        return VideoPolicy(*tiny(family), VideoPolicyConfig(**options), read_clip=read_made_clip)

    return make


@pytest.fixture(scope="session")
def policies(make_policy):
    """One policy per family, for tests that leave it as it was."""
    return {family: make_policy(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def rolled(policies):
    """Rollouts of `mixed_prompts`, four each."""
    return {f: policy.rollout(requests(mixed_prompts()), Key(3)) for f, policy in policies.items()}


@pytest.fixture(scope="session")
def video_policies(make_video_policy):
    return {family: make_video_policy(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def watched(video_policies):
    """Rollouts of `clip_prompts`, three each."""
    return {f: policy.rollout(requests(clip_prompts(), 3), Key(3)) for f, policy in video_policies.items()}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param
