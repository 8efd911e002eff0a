"""What a recipe's ratio and trust region come to where every ratio is 1: at a batch's only optimizer step."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmrl.objective.objective import Objective
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound

ROWS, ACTIONS = 4, 6
AT_ONE = {"mean_shift": 0.0}
"""Columns whose value is known at the weights that sampled."""


def idle_at_one(objective: Objective) -> list[str]:
    """The functions of the update that change nothing while the policy is the one that sampled, in words."""
    if objective.kinds:
        return [f"{kind}: {line}" for kind, own in objective.kinds.items() for line in idle_at_one(own)]
    found = [f"{b.spec.stage.replace('_', ' ')} {b.name!r}: {b.spec.idle}" for b in objective.stages if b.spec.idle]
    if objective.matching_objective or (objective.score_objective and not objective.policy_weight):
        return found
    batch, evaluation = _sampled(objective)
    try:
        log_ratio = objective.ratio(evaluation, batch)
        if torch.any(log_ratio != 0):
            return found
        total = objective.trust_region(log_ratio, evaluation, batch).sum()
        (gradient,) = torch.autograd.grad(total, evaluation.log_probs, allow_unused=True, materialize_grads=True)
    except (RuntimeError, KeyError, ValueError, TypeError):  # it reads what stands in no made-up batch
        return found
    found.insert(0, f"ratio {objective.ratio.name!r}: every ratio is 1")
    if torch.allclose(gradient, batch.advantage, rtol=1e-5, atol=0):
        found.insert(1, f"trust region {_named(objective.trust_region)}: no ratio reaches it")
    return found


def _named(bound: Bound) -> str:
    parameters = ", ".join(f"{k}={v}" for k, v in bound.parameters.items())
    return f"{bound.name!r}" + (f" ({parameters})" if parameters else "")


def _sampled(objective: Objective) -> tuple[Batch, Evaluation]:
    """Rows of two prompts as the update sees them before anything moved."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(ROWS, ACTIONS, generator=generator) - 0.1
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None].expand(ROWS, ACTIONS).clone()
    columns = {n: torch.full_like(old, AT_ONE.get(n, 0.5)) for b in objective.stages for n in b.needs}
    columns["sampler_log_probs"] = old
    columns |= {"segment": (torch.arange(ACTIONS) // 2).expand(ROWS, ACTIONS).clone(), "expert": torch.zeros(ROWS)}
    batch = Batch(
        mask=torch.ones(ROWS, ACTIONS, dtype=torch.bool), old_log_probs=old, group=torch.tensor([0, 0, 1, 1]),
        reward=advantage[:, 0], success=(advantage[:, 0] > 0).float(), advantage=advantage, columns=columns,
        max_length=ACTIONS,
    )  # fmt: skip
    for bound in (objective.ratio, objective.trust_region):
        batch = replace(batch, columns={**batch.columns, **(bound.prepare(batch) if bound.spec.prepared else {})})
    return batch, Evaluation(old.clone().requires_grad_(), columns=dict(batch.columns))
