"""Tiny flow policies that share one pipeline's frozen parts."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request

CAPTIONS = ("a red circle", "a blue square below", "two green triangles")


@cache
def _parts() -> dict[str, Any]:
    from mmrl.pipelines.bases.models import tiny_flow

    return tiny_flow(0, hidden=48, layers=2).components


def flow_pipeline() -> Any:
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(**{**_parts(), "transformer": copy.deepcopy(_parts()["transformer"])})


def flow_policy(seed: int = 0, **options: Any) -> FlowPolicy:
    options = {"model": "tiny", "max_sequence_length": 16, "steps": 6, "eval_steps": 8, "schedule": "linear"} | options
    return FlowPolicy(flow_pipeline(), FlowPolicyConfig(**options), seed=seed)


def captions(count: int = 2) -> list[Prompt]:
    return [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(CAPTIONS[:count])]


def flow_requests(count: int = 3, prompts: int = 2) -> list[Request]:
    return [Request(prompt, count, group=i) for i, prompt in enumerate(captions(prompts))]


@torch.no_grad()
def nudge(policy: FlowPolicy, scale: float = 0.02) -> None:
    """Move the trained weights, so that adapters do something and the policy leaves its reference."""
    for name, parameter in policy.inner.named_parameters():
        if parameter.requires_grad:
            parameter += scale * Key(0, purpose=name).normal(*parameter.shape)
