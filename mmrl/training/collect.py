"""The first half of a step: act, score, select, and fill the declared columns. No gradient here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrl.objective import Objective
from mmrl.policies.base import Policy
from mmrl.policies.batch_probes import BATCH_PROBES
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt, Request, Rollouts, Selection
from mmrl.selection.prompts import Prefetching, Sampler
from mmrl.stages import NEEDS, Need
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import gather_batch, gather_objects, my_share, together
from mmrl.training.evaluation import Score
from mmrl.training.passes import Pass, PassPlan
from mmrl.training.timing import Clock


@dataclass
class Collected:
    """rollouts  of this rank
    batch     of all ranks, shaped and selected
    mine      where each local row stands in `batch`
    indices   dataset rows asked for
    causes    why outputs stayed unscored, over all ranks
    """

    rollouts: Rollouts
    batch: Batch
    mine: Tensor
    indices: list[int]
    causes: Counter = field(default_factory=Counter)


@dataclass
class Collector:
    """Everything a step needs before the optimizer: `collect(step)`."""

    policy: Policy
    objective: Objective
    plan: PassPlan
    prompts: Sequence[Prompt]
    score: Score
    sampler: Sampler
    config: TrainingConfig
    accelerator: Accelerator
    clock: Clock

    def collect(self, step: int) -> Collected:
        key = Key(self.config.seed, step)
        indices = self.sampler.select(self.config.prompts_per_step, len(self.prompts), key)
        self.announce(indices, step + 1)
        causes: Counter = Counter()
        requests = spare = self._requests(indices, 0)
        rollouts = self._act(requests, spare, key, causes)
        assert rollouts is not None
        for refill in range(self.config.max_refills + 1):
            with self.clock("group"):
                batch, mine = self._gather(rollouts, step)
                batch, selections = self.objective.shape_and_select(batch)
            if refill == self.config.max_refills or not any(s.fresh or s.again for s in selections):
                break
            requests, fresh = self._refill(selections, batch, rollouts, len(indices), key)
            more = self._act(requests, spare, key, causes)
            indices = indices + fresh
            rollouts = rollouts if more is None else Rollouts.concatenate([rollouts, more])
        if not self.plan.early:
            self._fill_columns(rollouts, causes)
            gathered, mine = self._gather(rollouts, step)
            scored = ~gathered.reward.isnan()
            batch = replace(
                batch, columns=gathered.columns, counted=batch.counted & scored, trained=batch.trained & scored
            )
        for other in gather_objects(dict(causes), self.accelerator)[1:] if self.accelerator.num_processes > 1 else ():
            causes.update(other)
        return Collected(rollouts, batch, mine, indices, causes)

    @torch.no_grad()
    def compare(self, collected: Collected, batch: Batch) -> Batch:
        """The batch with columns of probes that compare all rollouts of the step, whose advantages are known now."""
        if not self.plan.compare:
            return batch
        rollouts, local = collected.rollouts, batch.index(collected.mine)
        where = rollouts.mask & local.trained[:, None].to(rollouts.mask.device)
        advantage = local.advantage[:, : where.shape[1]].to(where.device)[where]
        with self.clock("passes"):
            for need in self.plan.compare:
                probe = BATCH_PROBES[need.probe]
                pieces = partial(self._pieces, Need(probe.reads), rollouts, where)
                values = probe.function(pieces, advantage, total=self._total, **dict(need.options))
                column = torch.zeros_like(rollouts.old_log_probs)
                rollouts.columns[need.key] = column.masked_scatter(where, values.to(column))
        gathered, _ = self._gather(rollouts, batch.step)
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

    def announce(self, now: list[int], step: int) -> None:
        """Tell prompts that can be made ready which are asked for now and, as far as one knows, by `step`."""
        if not isinstance(self.prompts, Prefetching):
            return
        foresee, coming = getattr(self.sampler, "coming", None), []
        if foresee is not None and step < self.config.steps:
            coming = foresee(self.config.prompts_per_step, len(self.prompts), Key(self.config.seed, step))
        self.prompts.prefetch(my_share(now, self.accelerator) + my_share(coming, self.accelerator))

    def _requests(self, indices: list[int], first_group: int) -> list[Request]:
        groups = my_share(list(enumerate(indices, first_group)), self.accelerator)

        def opened() -> list[Request]:
            return [Request(self.prompts[i], self.config.group_size, group=g) for g, i in groups]

        with self.clock("data"):
            return together(opened, self.accelerator)

    def _refill(
        self, selections: list[Selection], batch: Batch, rollouts: Rollouts, groups: int, key: Key
    ) -> tuple[list[Request], list[int]]:
        """Requests of this rank for new prompts, and for more members of groups it holds.

        New prompts fill the step up to `prompts_per_step` groups that count, fewer than there are ranks if need be.
        """
        missing = self.config.prompts_per_step - len(torch.unique(batch.group[batch.counted]))
        fresh = min(sum(s.fresh for s in selections), max(missing, 0))
        indices = self.sampler.select(fresh, len(self.prompts), key) if fresh else []
        requests = self._requests(indices, groups)
        held = rollouts.group.tolist()
        for group, count in (item for s in selections for item in s.again.items()):
            if group in held:
                prompt = rollouts.prompts[int(rollouts.prompt[held.index(group)])]
                requests.append(Request(prompt, count, group, first_member=held.count(group)))
        return requests, indices

    def _act(self, requests: list[Request], spare: list[Request], key: Key, causes: Counter) -> Rollouts | None:
        """Act and score. Ranks pass the model together, so one that is asked for nothing while others are acts on
        a request of `spare` and drops what came out."""
        if not any(gather_objects(len(requests), self.accelerator)):
            return None
        with self.clock("rollout"):
            rollouts = together(lambda: self.policy.rollout(requests or spare[:1], key), self.accelerator)
        with self.clock("reward"):
            together(lambda: self._score(rollouts, causes if requests else Counter()), self.accelerator)
        if self.plan.early:
            self._fill_columns(rollouts, causes if requests else Counter())
        return rollouts if requests else None

    def _score(self, rollouts: Rollouts, causes: Counter) -> None:
        scores = self.score(rollouts.outputs, [rollouts.prompts[i] for i in rollouts.prompt.tolist()])
        device = rollouts.mask.device
        rollouts.components = {k: v.to(device) for k, v in scores.components.items()}
        rollouts.reward, rollouts.success = scores.reward.to(device), scores.success.to(device)
        causes.update(scores.causes)

    def _gather(self, rollouts: Rollouts, step: int) -> tuple[Batch, Tensor]:
        constants = {
            "max_length": self.policy.max_actions,
            "step": step,
            "steps": self.config.steps,
            "seed": self.config.seed,
        }
        batch, mine = gather_batch(rollouts, self.accelerator, **constants)
        return replace(batch, update=split_updates(batch.group, self.config.updates_per_step)), mine

    def _fill_columns(self, rollouts: Rollouts, causes: Counter) -> None:
        with self.clock("passes"), torch.no_grad():
            for part in self.plan.prepare:
                for rows in self._parts(rollouts, part):
                    piece = self.policy.evaluate(
                        rollouts.index(rows), part.needs, under=part.under, weights=part.weights
                    )
                    for need in part.needs:
                        values = piece.log_probs if need.probe == "log_probs" else piece.columns[need.key]
                        self._store(rollouts, need.key, rows, values.detach())
            if self.plan.step_rewards:
                self._score_steps(rollouts, causes)
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
        answers = together(lambda: self.policy.rollout(requests, key, greedy=True), self.accelerator)
        scores = together(lambda: self.score(answers.outputs, rollouts.prompts), self.accelerator)
        causes.update({f"greedy {k}": v for k, v in scores.causes.items()})
        worth = torch.where(scores.success.isnan(), scores.reward, scores.success).to(rollouts.old_log_probs)
        rollouts.columns[NEEDS["greedy_success"].key] = worth[rollouts.prompt]

    def _score_steps(self, rollouts: Rollouts, causes: Counter) -> None:
        """What each state before an action would lead to is worth: column `step_rewards (B, T)`."""
        outputs, addresses = together(lambda: self.policy.step_outputs(rollouts), self.accelerator)
        rows, steps = addresses.unbind(1)
        prompts = [rollouts.prompts[int(rollouts.prompt[r])] for r in rows.tolist()]
        scores = together(lambda: self.score(outputs, prompts), self.accelerator)
        causes.update({f"step {k}": v for k, v in scores.causes.items()})
        column = torch.zeros_like(rollouts.old_log_probs)
        values = scores.reward.to(column)
        column[rows.to(column.device), steps.to(column.device)] = values.nan_to_num(0)
        lost = rows[values.isnan().to(rows.device)].to(column.device)
        rollouts.reward[lost] = float("nan")
        rollouts.columns[NEEDS["step_rewards"].key] = column


def split_updates(group: Tensor, updates: int) -> Tensor:
    """(B,) which optimizer step a row belongs to: whole groups, in order, split as evenly as they go."""
    ids, place = torch.unique(group, return_inverse=True)
    return place * updates // len(ids)


def even_micro_batches(
    policy: Policy, rollouts: Rollouts, size: int, accelerator: Accelerator, rows: Tensor | None = None
) -> list[Tensor]:
    """Micro-batches of `rows` (default: all), equally many on every rank: short ranks repeat a row.

    A repeated row must carry zero weight in a loss; writing its columns again changes nothing.
    """
    rows = torch.arange(len(rollouts)) if rows is None else rows
    parts = policy.micro_batches(rollouts, rows, size) if len(rows) else []
    most = max(gather_objects(len(parts), accelerator))
    return parts + [torch.zeros(1, dtype=torch.long)] * (most - len(parts))


def whole_groups(group: Tensor, accelerator: Accelerator) -> list[Tensor]:
    """The rows of each group, for probes that compare its members; short ranks repeat a group."""
    parts = [(group == g).nonzero().squeeze(1).cpu() for g in torch.unique(group).tolist()]
    return parts + parts[:1] * (max(gather_objects(len(parts), accelerator)) - len(parts))
