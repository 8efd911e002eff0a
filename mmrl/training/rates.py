"""Learning rates of the parts of a policy: groups of parameters, each with the run's rate or one of its own."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.policies.base import Policy
from mmrl.training.config import TrainingConfig

PART, OWN = "part", "own"
"""Keys of a parameter group: whose it is, and its learning rate before the schedule; None: training.learning_rate."""


def grouped(policy: Policy) -> list[dict[str, Any]]:
    """Parameter groups of what is trained, one for each beginning of names in `policy.learning_rates`, and one for all
    others. A policy without such has one group, as it always had."""
    rates = policy.learning_rates
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in policy.module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(next((part for part in rates if name.startswith(f"{part}.")), ""), []).append(parameter)
    if idle := [part for part in rates if part not in groups]:
        raise ConfigError(f"a learning rate is given for {idle[0]!r}, of which nothing is trained")
    return [{"params": own, PART: part, OWN: rates.get(part)} for part, own in groups.items()]


def clip_gradients(policy: Policy, accelerator: Accelerator, limit: float) -> dict[str, float]:
    """Scale all gradients so that their norm is at most `limit`. Returns the norms before: `gradient_norm`, and
    `gradient_norm/PART` of the policy's parts."""
    named = [(n, p.grad) for n, p in policy.inner.named_parameters() if p.grad is not None] if policy.parts else []
    own = {part: [grad for name, grad in named if name.startswith(f"{part}.")] for part in policy.parts}
    apart = {f"gradient_norm/{part}": _norm(gradients) for part, gradients in own.items()}
    return {"gradient_norm": float(accelerator.clip_grad_norm_(policy.module.parameters(), limit)), **apart}


def _norm(gradients: list[Tensor]) -> float:
    """Of all together, 0 of none."""
    each = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
    return float(torch.linalg.vector_norm(torch.stack([norm.cpu() for norm in each]))) if each else 0.0


def set_rates(optimizer: torch.optim.Optimizer, config: TrainingConfig, update: int, share: float) -> None:
    """Each group's learning rate of optimizer step `update`, times `share`: its own under the run's schedule."""
    for group in optimizer.param_groups:
        own = group.get(OWN)
        asked = config if own is None else config.model_copy(update={"learning_rate": own})
        group["lr"] = share * asked.learning_rate_at(update)


def rates_by_part(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Of the last optimizer step, of groups with a rate of their own."""
    return {f"learning_rate/{g[PART]}": g["lr"] for g in optimizer.param_groups if g.get(OWN) is not None}
