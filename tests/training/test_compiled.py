"""Compiled feed-forward parts change no number, whatever attends around them."""

import shutil

import pytest
import torch
from torch import nn

from mmrl.errors import ConfigError, PolicyError
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.training import compiled
from mmrl.training.compiled import compile_blocks, feed_forwards
from tests.policies.generation.tiny import flow_policy
from tests.training.tiny import make_policy, make_prompts

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: nothing was compiled")


@needs_compiler
def test_log_probs_and_gradients_stay():
    """Rollout, packed scoring and backward, with adapters inside the compiled parts."""
    found = []
    for on in (False, True):
        policy = make_policy(lora={"rank": 4, "alpha": 8})
        names = [n for n, _ in policy.module.named_parameters()]
        if on:
            assert compile_blocks(policy.inner) == len(list(feed_forwards(policy.inner))) > 1
            assert [n for n, _ in policy.module.named_parameters()] == names
        rollouts = policy.rollout([Request(p, 3, group=g) for g, p in enumerate(make_prompts(2))], Key(0))
        log_probs = policy.evaluate(rollouts).log_probs
        log_probs.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])
        found.append((rollouts.actions, log_probs.detach(), gradient))
    (actions, plain, reference), (same, log_probs, gradient) = found
    assert torch.equal(actions, same) and (plain - log_probs).abs().max() < 1e-5
    assert (gradient - reference).norm() / reference.norm() < 1e-5


def test_blocks_of_generators_are_found():
    policy = flow_policy()
    blocks = [m for m in policy.module.modules() if type(m).__name__ == "JointTransformerBlock"]
    assert len(list(feed_forwards(policy.inner))) >= len(blocks) > 1


def test_experts_are_left_alone_and_a_model_without_parts_is_refused():
    class Block(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.mlp = part

    class Model(nn.Sequential):
        _no_split_modules = ("Block",)

    mixture = nn.ModuleDict({"experts": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"no feed-forward part .* but mixtures of experts; leave it out"):
        compile_blocks(Model(Block(mixture)))
    with pytest.raises(ConfigError, match=r"blocks of this model \(Block\); leave it out"):
        compile_blocks(Model(nn.Linear(2, 2)))


def test_a_part_that_comes_out_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(compiled.torch, "compile", lambda part, dynamic: lambda x: part(x) * 1.001)
    with pytest.raises(PolicyError, match=r"from the plain one, more than 1e-05; leave training.compile out"):
        compile_blocks(make_policy().inner)
