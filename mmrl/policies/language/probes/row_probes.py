"""Probes with one number for each row, made from the gradient of its own log-prob: a forward and a backward a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RowProbe = Callable[[Callable[[int], Tensor], int, Sequence[Tensor]], Tensor]
"""(log-prob of a row, how many rows, trainable weights) -> (rows,)"""


def score_gradient_norm(log_prob: Callable[[int], Tensor], count: int, weights: Sequence[Tensor]) -> Tensor:
    """Norm of each row's score gradient, |d log pi(o_i) / d theta|, over all trainable weights: VCPO's g_i.

    log_prob  (T,) log-probs of one row's actions, 0 outside them, with gradient
    weights   those that train

    Returns (count,) float32. Costs a forward and a backward pass for each row, and one copy of the gradient.
    """
    norms = []
    for row in range(count):
        with torch.enable_grad():
            grads = torch.autograd.grad(log_prob(row).sum(), list(weights), allow_unused=True)
        squares = [g.detach().float().square().sum() for g in grads if g is not None]
        norms.append(torch.stack(squares).sum().sqrt())
    return torch.stack(norms)


ROW_PROBES: dict[str, RowProbe] = {"score_gradient_norm": score_gradient_norm}
