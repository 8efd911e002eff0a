"""Micro-batches over rows and actions: an optimizer step in pieces of any size, with the gradient of the whole.

The loss of an update is a function of its log-probs. One pass without gradient gives them, `c = dL/dlog_probs` is taken
on that leaf over whole rows, and then the gradient of the loss is that of `sum c * log_probs`, which any split of
(row, action) pairs adds up to. So a row of fifty denoising steps need not be held at once.

The price is the first pass. Terms that read other current columns than log-probs keep rows whole, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.objective import Loss
from mmrl.policies.base import Policy
from mmrl.record import Batch, Evaluation, Rollouts
from mmrl.stages import Need


def refuse_pieces(policy: type[Policy], objective: Objective, reads: Sequence[Need], actions: int | None) -> None:
    """ConfigError where an update cannot be made in pieces of `actions` actions."""
    if actions is None:
        return
    if not policy.splits_actions:
        raise ConfigError(
            f"training.micro_batch_actions={actions}: the {policy.modality} policy computes the actions of a row "
            "together, so nothing is saved by splitting them; leave it out and lower training.micro_batch_size"
        )
    credit = [b for b in objective.credit if b.spec.phase == "update"]
    if reads or credit:
        names = ", ".join([n.probe for n in reads] or [b.name for b in credit])
        raise ConfigError(
            f"training.micro_batch_actions={actions}: {names} is read of the current policy too, which "
            "keeps rows whole; leave micro_batch_actions out"
        )


def coefficients_of(
    objective: Objective, log_probs: Tensor, batch: Batch, weights: Tensor, given: Tensor | None
) -> tuple[Tensor, Loss, Evaluation]:
    """(B, T) dL/dlog_probs of whole rows, their share of the loss, and what it was computed from.

    given  (B,) of a whole-sequence objective, as in `Objective.loss`
    """
    with torch.enable_grad():
        leaf = log_probs.detach().clone().requires_grad_()
        evaluation = Evaluation(leaf)
        share = objective.loss(evaluation, batch, weights, given)
        if not share.loss.requires_grad:
            return torch.zeros_like(leaf), share, evaluation
        (gradient,) = torch.autograd.grad(share.loss, leaf)
    return gradient * batch.mask, replace(share, loss=share.loss.detach()), evaluation


def pieces(mask: Tensor, moving: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, and which of their actions, of pieces of at most `size` actions, row after row.

    mask, moving  (B, T) bool: actions there are, and those whose coefficient is not 0. Others need no gradient
    """
    rows, columns = (mask & moving).nonzero(as_tuple=True)
    for part in torch.arange(len(rows), device=rows.device).split(size):
        used, place = torch.unique(rows[part], return_inverse=True)
        some = torch.zeros(len(used), mask.shape[1], dtype=torch.bool, device=mask.device)
        some[place, columns[part]] = True
        yield used, some


def narrowed(rollouts: Rollouts, rows: Tensor, mask: Tensor) -> Rollouts:
    """These rows, of which only the actions in `mask` are scored."""
    return replace(rollouts.index(rows), mask=mask)
