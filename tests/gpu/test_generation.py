"""A generator on CUDA scores what it sampled on the CPU."""

import copy

import pytest
import torch

from mmrl.pipelines.bases.models import CAPTION_LENGTH, tiny_flow
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request

pytestmark = pytest.mark.gpu


def policy(device: str) -> FlowPolicy:
    config = FlowPolicyConfig(
        model="tiny", max_sequence_length=CAPTION_LENGTH, steps=4, guidance_scale=2.0, lora={"rank": 4, "alpha": 8}
    )
    made = FlowPolicy(tiny_flow(0), config)
    made.module.to(device)
    return made


def test_log_probs_and_gradients_are_the_cpus(device):
    here, there = policy("cpu"), policy(device)
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(["a red dot", "a star"])]
    rollouts = here.rollout([Request(p, 2, group=g) for g, p in enumerate(prompts)], Key(0))
    found = []
    for each in (here, there):
        log_probs = each.evaluate(copy.copy(rollouts)).log_probs
        log_probs.sum().backward()
        gradient = torch.cat([p.grad.cpu().flatten() for p in each.module.parameters() if p.grad is not None])
        found.append((log_probs.detach().cpu(), gradient))
    (expected, reference), (log_probs, gradient) = found
    assert (log_probs - expected).abs().max() < 1e-4
    assert (gradient - reference).norm() / reference.norm() < 1e-3
