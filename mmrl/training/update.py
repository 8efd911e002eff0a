"""The gradient half of a step: what each pass over a rollout batch trains on, and the gradient of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrl.objective import Objective
from mmrl.objective.objective import Loss
from mmrl.policies.base import Policy
from mmrl.record import Batch, Evaluation, Rollouts
from mmrl.stages import Need
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import even_micro_batches, evened, gather_objects
from mmrl.training.finite import loss_problem
from mmrl.training.pieces import coefficients_of, narrowed, pieces
from mmrl.training.pruned import prunes, without_idle
from mmrl.training.updates import assign_updates

Sums = dict[str, tuple[float, float]]


def passes_over(objective: Objective, batch: Batch, config: TrainingConfig) -> list[tuple[Batch, Tensor]]:
    """The batch and its weights for each epoch: groups are assigned to optimizer steps anew, and what depends on them
    is computed again. Functions that remember have seen the batch once in the end."""
    passes, before, after = [], objective.memory(), None
    for epoch in range(config.epochs):
        if after is not None:
            objective.recall(before)
        assigned = replace(batch, update=assign_updates(batch, config.updates_per_epoch, epoch))
        passes.append(objective.credit_and_weigh(assigned))
        after = after or objective.memory()
    objective.recall(after or before)
    return passes


@dataclass
class Added:
    """What one optimizer step's forward and backward passes came to.

    passes   micro-batches on each rank; none: no row of any rank trains in this step
    sums     {name: (sum, count)} for the metrics, of this rank
    problem  why the loss of some rank is not finite; None if all are
    """

    passes: int
    sums: Sums = field(default_factory=dict)
    problem: str | None = None


@dataclass
class Gradients:
    """Adds up the gradient of an optimizer step. The loss is a sum: nothing is divided here."""

    policy: Policy
    objective: Objective
    reads: Sequence[Need]
    config: TrainingConfig
    accelerator: Accelerator

    def add(self, rollouts: Rollouts, batch: Batch, weights: Tensor, mine: Tensor, update: int) -> Added:
        """The rows of optimizer step `update`, in micro-batches, all ranks together."""
        local, local_weights = local_rows(batch, weights, mine, rollouts.mask.shape[1])
        rows = (self.objective.has_signal(local) & (local.update == update)).cpu().nonzero().squeeze(1)
        in_pieces = self.config.micro_batch_actions is not None
        split = self.policy.micro_batches if in_pieces else self.policy.update_passes
        mine_in_parts = split(rollouts, rows, self.config.micro_batch_size) if len(rows) else []
        parts, own = evened(mine_in_parts, self.accelerator), len(mine_in_parts)
        coefficients = self._score_coefficients(rollouts, batch, local, mine, update)
        added = Added(len(parts))
        if in_pieces:
            return self._in_pieces(rollouts, local, local_weights, coefficients, parts, own, added)
        for i, part in enumerate(parts):
            at = part.to(local_weights.device)
            given = None if coefficients is None else coefficients[at]
            last = i == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.policy.module):
                self._backward(rollouts.index(part), local.index(at), local_weights[at], given, i < own, added)
        return self._agreed(added)

    def _agreed(self, added: Added) -> Added:
        if added.passes:
            problems = [p for p in gather_objects(added.problem, self.accelerator) if p]
            added.problem = problems[0] if problems else None
        return added

    def _in_pieces(
        self, rollouts: Rollouts, batch: Batch, weights: Tensor, given: Tensor | None, parts: list[Tensor], own: int,
        added: Added,
    ) -> Added:  # fmt: skip
        """Log-probs of whole rows first, without gradient; then the pieces of each row's actions, equally many on
        every rank: a rank that has fewer repeats an action that weighs nothing."""
        coefficient = torch.zeros_like(rollouts.old_log_probs)
        for i, part in enumerate(parts):
            at = part.to(weights.device)
            with torch.no_grad():
                log_probs = self.policy.evaluate(rollouts.index(part), ()).log_probs
            some = None if given is None else given[at]
            gradient, share, evaluation = coefficients_of(
                self.objective, log_probs, batch.index(at), weights[at], some
            )  # fmt: skip
            if i < own:
                coefficient[part] = gradient.to(coefficient)
                self._note(share, evaluation, batch.index(at), weights[at], rollouts.index(part), added)
        assert self.config.micro_batch_actions is not None
        todo = list(pieces(rollouts.mask, coefficient != 0, self.config.micro_batch_actions))
        most = max(gather_objects(len(todo), self.accelerator))
        idle = (torch.zeros(1, dtype=torch.long, device=rollouts.mask.device), _one_action(rollouts.mask))
        alive = len(todo)
        todo += [idle] * (most - alive)
        for i, (rows, mask) in enumerate(todo):
            with nullcontext() if i == most - 1 else self.accelerator.no_sync(self.policy.module):
                log_probs = self.policy.evaluate(narrowed(rollouts, rows, mask), ()).log_probs
                share_of = (coefficient[rows] * mask * log_probs).sum() * float(i < alive)
                self.accelerator.backward(share_of * self.accelerator.num_processes)
        added.passes = most
        return self._agreed(added)

    def _note(
        self, share: Loss, evaluation: Evaluation, batch: Batch, weights: Tensor, rollouts: Rollouts, added: Added
    ) -> None:
        """A micro-batch's numbers for the metrics, and what is not finite about it."""
        if added.problem is None:
            added.problem = loss_problem(self.objective, share, evaluation, batch, weights, rollouts)
        for name, (value, count) in share.sums.items():
            total = added.sums.get(name, (0.0, 0.0))
            added.sums[name] = (total[0] + float(value), total[1] + float(count))

    def _backward(
        self, rollouts: Rollouts, batch: Batch, weights: Tensor, coefficients: Tensor | None, alive: bool, added: Added
    ) -> None:
        """One micro-batch; not `alive`: a repeated row that keeps ranks in step and weighs nothing."""
        if alive and prunes(self.policy, self.objective):
            rollouts, batch = without_idle(rollouts, batch, weights)
        evaluation = self.policy.evaluate(rollouts, self.reads)
        share = self.objective.loss(evaluation, batch, weights, coefficients)
        if alive:
            self._note(share, evaluation, batch, weights, rollouts, added)
        self.accelerator.backward(share.loss * (float(alive) * self.accelerator.num_processes))

    @torch.no_grad()
    def _score_coefficients(
        self, rollouts: Rollouts, batch: Batch, local: Batch, mine: Tensor, update: int
    ) -> Tensor | None:
        """dJ/ds of a whole-sequence objective: scores of this update's rows on all ranks first, without gradient."""
        if not self.objective.score_objective:
            return None
        scores = torch.zeros(0)
        assert self.objective.score is not None
        reads = [need for need in self.objective.score.needs.values() if need.weights == "current"]
        trains = (local.trained & (local.update == update)).cpu().nonzero().squeeze(1)
        for part in even_micro_batches(self.policy, rollouts, self.config.micro_batch_size, self.accelerator, trains):
            evaluation = self.policy.evaluate(rollouts.index(part), reads)
            at = part.to(mine.device)
            own = self.objective.scores(evaluation, local.index(at)).to(batch.mask.device)
            scores = scores if len(scores) else own.new_zeros(len(batch), *own.shape[1:])
            scores[mine[at]] = own
        if not len(scores):
            return None
        if self.accelerator.num_processes > 1:
            scores = self.accelerator.reduce(scores, "sum")
        rows = (batch.trained & (batch.update == update)).nonzero().squeeze(1)
        coefficients = torch.zeros_like(scores)
        coefficients[rows] = self.objective.score_coefficients(scores[rows], batch.index(rows))
        return coefficients[mine]


def _one_action(mask: Tensor) -> Tensor:
    """(1, T) the first action of the first row, alone."""
    one = torch.zeros_like(mask[:1])
    one[0, int(mask[0].int().argmax())] = True
    return one


def local_rows(batch: Batch, weights: Tensor, mine: Tensor, width: int) -> tuple[Batch, Tensor]:
    """This rank's rows in their local order, `T` cut to the local width (the rest is padding)."""
    local = batch.index(mine)
    cut: dict[str, Any] = {
        n: getattr(local, n)[:, :width] for n in ("mask", "old_log_probs", "advantage", "loss_mask", "owner")
    }
    cut["columns"] = {k: v[:, :width] if v.dim() == 2 else v for k, v in local.columns.items()}
    if local.actions is not None:
        cut["actions"] = local.actions[:, :width]
    return replace(local, **cut), weights[mine][:, :width]
