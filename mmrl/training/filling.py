"""The declared columns of a rollout batch: forward passes without gradient, greedy answers, rewards of steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrl.policies.base import Policy
from mmrl.policies.language.probes.batch_probes import BATCH_PROBES
from mmrl.randomness import Key
from mmrl.record import Batch, Request, Rollouts
from mmrl.rollout.actor import Actor, score_rows
from mmrl.stages import NEEDS, Need
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import even_micro_batches, gather_batch, together, whole_groups
from mmrl.training.evaluation import Score
from mmrl.training.passes import Pass, PassPlan
from mmrl.training.timing import Clock


@dataclass
class Columns:
    """Fills `Rollouts.columns` as the plan of passes says."""

    actor: Actor
    plan: PassPlan
    score: Score
    config: TrainingConfig
    accelerator: Accelerator
    clock: Clock

    @property
    def policy(self) -> Policy:
        return self.actor.policy

    def fill(self, rollouts: Rollouts, causes: Counter, step: int) -> None:
        """The columns of probes, and of the rewards that other outputs of the same prompts bring, at a step of the run:
        views that are drawn anew differ by it."""
        with self.clock("passes"), torch.no_grad():
            for part in self.plan.prepare:
                under = None if part.under is None else part.under.at(step)
                for rows in self._parts(rollouts, part):
                    piece = self.policy.evaluate(rollouts.index(rows), part.needs, under=under, weights=part.weights)
                    for need in part.needs:
                        values = piece.log_probs if need.probe == "log_probs" else piece.columns[need.key]
                        self._store(rollouts, need.key, rows, values.detach())
            for need in self.plan.step_rewards:
                self._score_steps(rollouts, causes, need)
            if self.plan.greedy:
                self._answer_greedily(rollouts, causes)

    def _parts(self, rollouts: Rollouts, part: Pass) -> list[Tensor]:
        """The rows of each forward of a pass: whole groups where a probe compares their members."""
        if any(need.probe in self.policy.group_probes for need in part.needs):
            return whole_groups(rollouts.group, self.accelerator)
        return even_micro_batches(self.policy, rollouts, self.config.micro_batch_size, self.accelerator)

    @staticmethod
    def _store(rollouts: Rollouts, key: str, rows: Tensor, values: Tensor) -> None:
        if key not in rollouts.columns:
            rollouts.columns[key] = values.new_zeros(len(rollouts), *values.shape[1:])
        rollouts.columns[key][rows.to(values.device)] = values

    def _answer_greedily(self, rollouts: Rollouts, causes: Counter) -> None:
        """Column `greedy_success (B,)`: what the deterministic answer to a rollout's prompt is worth, NaN unscored.

        The same answer at every visit, as long as the weights are the same: its key is that of no step.
        """
        requests = [Request(prompt, 1, group=i) for i, prompt in enumerate(rollouts.prompts)]
        key = Key(self.config.seed, purpose="greedy")
        answers = together(lambda: self.actor.act(requests, key, greedy=True), self.accelerator)
        scores = together(lambda: score_rows(answers, self.score), self.accelerator)
        causes.update({f"greedy {k}": v for k, v in scores.causes.items()})
        worth = torch.where(scores.success.isnan(), scores.reward, scores.success).to(rollouts.old_log_probs)
        rollouts.columns[NEEDS["greedy_success"].key] = worth[rollouts.prompt]

    def _score_steps(self, rollouts: Rollouts, causes: Counter, need: Need) -> None:
        """What each state before an action would lead to is worth: column `step_rewards (B, T)`."""
        outputs, addresses = self.policy.step_outputs(rollouts, **dict(need.options))
        rows, steps = addresses.unbind(1)
        prompts = [rollouts.prompts[int(rollouts.prompt[r])] for r in rows.tolist()]
        scores = together(lambda: self.score(outputs, prompts), self.accelerator)
        causes.update({f"step {k}": v for k, v in scores.causes.items()})
        column = torch.zeros_like(rollouts.old_log_probs)
        values = scores.reward.to(column)
        column[rows.to(column.device), steps.to(column.device)] = values.nan_to_num(0)
        lost = rows[values.isnan().to(rows.device)].to(column.device)
        rollouts.reward[lost] = float("nan")
        rollouts.columns[need.key] = column

    @torch.no_grad()
    def compare(self, rollouts: Rollouts, mine: Tensor, batch: Batch) -> Batch:
        """The batch with columns of probes that compare all rollouts of the step, whose advantages are known now."""
        if not self.plan.compare:
            return batch
        local = batch.index(mine)
        where = rollouts.mask & local.trained[:, None].to(rollouts.mask.device)
        advantage = local.advantage[:, : where.shape[1]].to(where.device)[where]
        with self.clock("passes"):
            for need in self.plan.compare:
                probe = BATCH_PROBES[need.probe]
                pieces = partial(self._pieces, Need(probe.reads), rollouts, where)
                values = probe.function(pieces, advantage, total=self._total, **dict(need.options))
                column = torch.zeros_like(rollouts.old_log_probs)
                rollouts.columns[need.key] = column.masked_scatter(where, values.to(column))
        gathered, _ = gather_batch(rollouts, self.accelerator)
        return replace(batch, columns=batch.columns | {n.key: gathered.columns[n.key] for n in self.plan.compare})

    def _pieces(self, need: Need, rollouts: Rollouts, where: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass over the tokens in `where`: their places among them, and a vector each."""
        place = torch.zeros_like(where, dtype=torch.long).masked_scatter(
            where, torch.arange(int(where.sum())).to(where.device)
        )
        size = self.config.micro_batch_size
        own = len(self.policy.micro_batches(rollouts, torch.arange(len(rollouts)), size))
        for i, part in enumerate(even_micro_batches(self.policy, rollouts, size, self.accelerator)):
            evaluation = self.policy.evaluate(rollouts.index(part), [need], weights="old")
            inside = where[part.to(where.device)]
            if i < own:  # a short rank repeats a row, so that all ranks run as many passes
                yield place[part.to(where.device)][inside], evaluation.columns[need.key][inside]

    def _total(self, values: Tensor) -> Tensor:
        return values if self.accelerator.num_processes == 1 else self.accelerator.reduce(values, "sum")
