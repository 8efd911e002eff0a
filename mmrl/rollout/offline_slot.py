"""One place of a group for a stored answer: EasyVideoR1's hybrid mode, and NPO's guide rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from mmrl.errors import ConfigError, DataError
from mmrl.objective.groups import group_mean
from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.hints import first_text, worth
from mmrl.rollout.origins import brought
from mmrl.rollout.plan import Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "offline_slot",
    method="easyvideor1",
    paper="EasyVideoR1's hybrid of offline and online rollouts, arXiv 2604.16893; NPO: near-future policy, 2604.20733",
    formula="where the mean outcome of a group is below `below`: one stored answer in the place of one member",
    modalities=LANGUAGE,
    confidence="partly",
)
class OfflineSlot(Strategy):
    """A stored answer takes one place of a group, scored and trained like the others.

    column    of the data set: the stored answer, a text (or several, of which the first)
    below     only groups whose mean outcome is below; 1.01 means all groups
    replaces  whose place the stored answer takes: "last" (EasyVideoR1), or "worst", the first of lowest reward (NPO)
    verified  a stored answer that its own reward calls wrong takes no place (NPO)
    answers   a JSONL file of {id, tokens} in place of the column, as `mmrl autonpo` writes it: ids of prompts, and the
              tokens of one answer to each

    Column `expert (B,)` is 1 on it. The ratio's denominator is the policy's own probability at collection, so it starts
    at 1. Source: cyuQ1n/EasyVideoR1, ray_trainer.py; NPO after secondary descriptions.
    """

    origins = (brought("demonstration"),)
    columns = {"expert": 0.0}

    def __init__(
        self,
        *,
        column: str = "demonstrations",
        below: float = 1.01,
        replaces: Literal["last", "worst"] = "last",
        verified: bool = False,
        answers: str | None = None,
    ) -> None:
        if replaces not in ("last", "worst"):
            raise ConfigError(f"rollout 'offline_slot': replaces={replaces!r}; expected 'last' or 'worst'")
        self.column, self.below, self.replaces, self.verified = column, below, replaces, verified
        self.data_columns = (column,) if answers is None else ()
        self.answers = None if answers is None else stored_answers(Path(answers))
        self._tried: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._tried = set()
        expert, value = batch["expert"] > 0, worth(batch)
        scored = batch.counted & ~value.isnan() & ~expert
        mean = group_mean(value, batch.group, scored)
        wanted = sorted(set(batch.group[scored & (mean < self.below)].tolist()) - self._tried)
        self._tried |= set(wanted)
        given = [Given("demonstration", group=g, columns={"expert": 1.0}) for g in wanted]
        keep = torch.ones_like(expert)
        if self.verified:
            keep &= ~expert | (value.nan_to_num(0) > 0)
        for group in torch.unique(batch.group[expert & keep]).tolist():
            own = ((batch.group == group) & ~expert).nonzero().squeeze(1)
            keep[own[self._place(batch.reward[own].nan_to_num(torch.inf), batch.member[own])]] = False
        return Plan(given=given, counted=keep, trained=keep)

    def _place(self, reward: torch.Tensor, member: torch.Tensor) -> int:
        if self.replaces == "last":
            return int(member.argmax())
        return min(range(len(reward)), key=lambda i: (float(reward[i]), int(member[i])))

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        if self.answers is not None:
            return [Answer(torch.tensor(self.answers[prompt.id]))] if prompt.id in self.answers else []
        text = first_text(prompt, self.column)
        return [] if text is None else [text]


def stored_answers(path: Path) -> dict[str, list[int]]:
    """{id of a prompt: tokens} of a JSONL file of {id, tokens}."""
    if not path.is_file():
        raise ConfigError(f"rollout 'offline_slot': answers={path}: no such file; expected lines of {{id, tokens}}")
    found: dict[str, list[int]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            found[row["id"]] = [int(token) for token in row["tokens"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}, line {number}: expected {{id, tokens}}, got {line:.80!r}") from None
    return found
