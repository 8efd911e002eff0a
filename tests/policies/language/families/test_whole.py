"""Below float32 the whole model is held against its own forward pass, and a way that is too far is taken back."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.families import whole
from mmrl.policies.language.layout import Way
from mmrl.policies.language.vision import VisionPolicy
from tests.policies.language.families.tiny import RECIPES


def build(**options) -> VisionPolicy:
    model, processor = RECIPES["internvl"]()
    config = LanguagePolicyConfig(model="tiny", max_new_tokens=4, dtype="bfloat16", **options)
    return VisionPolicy(model.to(torch.bfloat16), processor, config)


@pytest.fixture(autouse=True)
def looked_at_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))


def test_every_way_is_compared_in_the_precision_of_the_run():
    gaps = {n: g for n, g in build().capabilities.gaps.items() if n.endswith(", bfloat16, mean")}
    assert len(gaps) == 6 and all(gap < whole.MEAN for gap in gaps.values())
    assert gaps["packed, bfloat16, mean"] > 1e-5  # rounding that float32 does not have


def test_what_is_compared_is_kept(monkeypatch):
    first = build().capabilities
    monkeypatch.setattr(whole, "mean_gaps", lambda *_: pytest.fail("looked at again"))
    assert build().capabilities == first


def test_a_way_that_is_too_far_is_taken_back_and_named(monkeypatch):
    found = whole.mean_gaps
    monkeypatch.setattr(whole, "mean_gaps", lambda *given: found(*given) | {"packed": 0.2})
    policy = build()
    assert policy.ways[0] is Way.TWO_CALLS and not policy.inner.shares_prefixes
    assert "packed row" in policy.found["closed"]["packed"] and policy.capabilities.fallbacks


def test_a_model_with_nothing_left_is_refused_with_the_number(monkeypatch):
    monkeypatch.setattr(whole, "mean_gaps", lambda *_: {"single rows": 0.2})
    with pytest.raises(PolicyError, match=r"'internvl' in bfloat16: .* by 0.2 on average, tolerance 0.03"):
        build()
