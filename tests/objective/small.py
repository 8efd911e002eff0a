"""One-row and few-row batches for worked numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective import Objective
from mmrl.record import Batch, Evaluation


def rows(log_ratios: list[list[float]], advantages: list[float] | None = None, **fields) -> tuple[Batch, Tensor]:
    """A batch of rows with these log-ratios at old log-prob -1, and the current log-probs with gradient."""
    width = max(len(r) for r in log_ratios)
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in log_ratios])
    apart = torch.tensor([r + [0.0] * (width - len(r)) for r in log_ratios], dtype=torch.float64)
    old = fields.pop("old", -1.0) * mask.double()
    if advantages is not None:
        fields["advantage"] = torch.tensor(advantages, dtype=torch.float64)[:, None] * mask
    fields.setdefault("group", torch.zeros(len(mask), dtype=torch.long))
    batch = Batch(mask=mask, old_log_probs=old, **fields)
    return batch, (old + apart).requires_grad_()


def pull(config: dict, log_ratios: list[list[float]], advantages: list[float], **fields) -> tuple[Tensor, Tensor]:
    """(B, T) objective of each action, and its gradient with respect to the log-probs, unweighted."""
    batch, new = rows(log_ratios, advantages, **fields)
    objective = Objective.of(config)
    batch, _ = objective.prepare(batch)
    evaluation = Evaluation(new)
    values = objective.trust_region(objective.ratio(evaluation, batch), evaluation, batch)
    (gradient,) = torch.autograd.grad(values.sum(), new)
    return values.detach(), gradient


def close(values, expected, atol: float = 1e-5) -> bool:
    return torch.allclose(torch.as_tensor(values).double(), torch.as_tensor(expected).double(), atol=atol)


def log(*ratios: float) -> list[float]:
    return torch.tensor(ratios, dtype=torch.float64).log().tolist()
