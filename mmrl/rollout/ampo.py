"""Traces of several teachers, only where the whole group fails, and only those the student can follow."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.demonstrations import texts_of
from mmrl.rollout.hints import failed_groups
from mmrl.rollout.origins import brought
from mmrl.rollout.plan import Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


def comprehension(log_probs: Tensor, mask: Tensor, last: int) -> Tensor:
    """(B,) the student's mean probability of the last `last` actions of each row; of all of them where it is 0."""
    behind = mask.long().flip(1).cumsum(1).flip(1)
    inside = mask & ((behind <= last) if last else mask)
    return (log_probs.exp() * inside).sum(1) / inside.sum(1).clamp(min=1)


@stage(
    "rollout",
    "ampo",
    paper="AMPO: multi-teacher guidance on demand, 2025; code SII-Enigma/AMPO",
    formula="where none of a group is right: the k teacher traces of the largest mean_t pi(answer | q, reasoning) "
    "in the place of k random members",
    confidence="partly",
    modalities=LANGUAGE,
)
class Ampo(Strategy):
    """Failed groups get the teacher traces that the policy understands best.

    column  of the data set: the teachers' answers, a text or several
    count   k: how many of them train; they take the places of as many members
    answer  tokens at the end of a trace that are its answer, the end token included; 0 judges the whole trace

    Column `expert (B,)` is 1 on traces; those not chosen neither count nor train. Pair it with trust region
    `expert_shaped` and advantage `dr_grpo`. Source: the authors' code (train_ampo.sh, mix_dapo_trainer.py); there the
    answer is found in the text.
    """

    origins = (brought("demonstration"),)
    columns = {"expert": 0.0}

    def __init__(self, *, column: str = "demonstrations", count: int = 2, answer: int = 16) -> None:
        if count < 1 or answer < 0:
            raise ConfigError(f"rollout 'ampo': count={count}, answer={answer}; expected at least 1, and 0 or more")
        self.column, self.count, self.answer = column, count, answer
        self.data_columns = (column,)
        self._tried: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._tried = set()
        expert = batch["expert"] > 0
        failed = failed_groups(batch.index((~expert).nonzero().squeeze(1)))
        new = [g for g in failed if g not in self._tried]
        self._tried |= set(new)
        keep = self._chosen(batch, expert, step)
        given = [Given("demonstration", group=g, columns={"expert": 1.0}) for g in new]
        return Plan(given=given, counted=keep, trained=keep)

    def _chosen(self, batch: Batch, expert: Tensor, step: Step) -> Tensor:
        """(B,) bool: all but the traces that are understood least and the members that made room."""
        keep = torch.ones_like(expert)
        score = comprehension(batch.old_log_probs, batch.mask, self.answer)
        for group in torch.unique(batch.group[expert]).tolist():
            traces = ((batch.group == group) & expert).nonzero().squeeze(1)
            order = traces[torch.argsort(score[traces], descending=True, stable=True)]
            keep[order[self.count :]] = False
            own = ((batch.group == group) & ~expert).nonzero().squeeze(1)
            draw = step.key.at(member=group, purpose="ampo").generator()
            leave = torch.randperm(len(own), generator=draw)[: min(len(traces), self.count)]
            keep[own[leave.to(own.device)]] = False
        return keep

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        return list(texts_of(prompt.columns.get(self.column), f"prompt {prompt.id!r}: column {self.column!r}"))
