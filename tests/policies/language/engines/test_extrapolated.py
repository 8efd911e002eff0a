"""Answers beyond the policy: gain 0 is the policy, -1 what it was trained from, and more is further along."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.names import engine_class
from mmrl.randomness import Key
from mmrl.record import Request
from tests.training.tiny import make_policy, make_prompts

REQUESTS = [Request(p, 2, group=g) for g, p in enumerate(make_prompts(2))]


def answers(engine, changes, *, trained=True):
    policy = make_policy(engine=engine, old_log_probs="trainer", max_new_tokens=3, **changes)
    if not changes:
        _ = policy._frozen_reference
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for p in policy.module.parameters() if p.requires_grad and trained):
        parameter.data += 0.3 * parameter.std().clamp(min=0.05) * torch.randn(parameter.shape, generator=generator)
    with torch.no_grad():
        return policy.rollout(REQUESTS, Key(3))


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
def test_between_and_beyond(changes):
    plain, base = answers("local", changes), answers("local", changes, trained=False)
    width = min(plain.actions.shape[1], base.actions.shape[1])
    assert not torch.equal(plain.actions[:, :width], base.actions[:, :width])
    for gain, same in ((0.0, plain), (-1.0, base)):
        found = answers({"name": "extrapolated", "gain": gain, "top_p": 1.0}, changes)
        assert torch.equal(found.actions, same.actions)


def test_it_draws_from_something_else_than_the_policy():
    beyond = answers({"name": "extrapolated", "gain": 0.0, "top_p": 0.3}, {})
    own = answers({"name": "extrapolated", "gain": 0.5, "top_p": 1.0}, {})
    first = (slice(None), 0)
    assert (own.columns["sampler_log_probs"][first] != own.old_log_probs[first]).all()
    assert (beyond.columns["sampler_log_probs"][first] > beyond.old_log_probs[first]).all(), "renormalised"


def test_refusals():
    with pytest.raises(ConfigError, match=r"write policy\.old_log_probs=trainer"):
        engine_class(LanguagePolicyConfig(model="tiny", engine="extrapolated"))
    with pytest.raises(ConfigError, match="expected same"):
        engine_class(LanguagePolicyConfig(
            model="tiny", engine="extrapolated", old_log_probs="trainer", reference_device="cpu"))  # fmt: skip
    with pytest.raises(ConfigError, match="top_p"):
        engine_class(LanguagePolicyConfig(
            model="tiny", engine={"name": "extrapolated", "top_p": 0}, old_log_probs="trainer"))  # fmt: skip
