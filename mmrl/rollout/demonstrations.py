"""Answers of others among a group's own: the slot of every method that mixes imitation into a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError, DataError
from mmrl.record import BEHAVIOURS, Answer, Batch, Prompt, Rollouts
from mmrl.rollout.origins import brought
from mmrl.rollout.plan import Behaviour, Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


@stage(
    "rollout",
    "demonstrations",
    paper="LUFFY: Learning to Reason under Off-Policy Guidance, arXiv 2504.14945",
    formula="a group is its own members and `count` answers from the data set's column `demonstrations`",
    confidence="partly",
    modalities=LANGUAGE,
)
class Demonstrations(Strategy):
    """Every group gets answers that the data set brings along, scored as its own are.

    column     of the data set: a text, or a list of texts, per prompt; a prompt without one gets none
    count      at most so many of them, from the front
    behaviour  the ratio's denominator on these rows: "policy" is their own probability at collection, so that the
               ratio starts at 1; "one" takes the demonstrator for certain, as LUFFY does
    joins      "group": they are members like the others; "loss": they train and do not count, so that no advantage is
               theirs and a regularizer such as `nll` with `rows: expert` may be; "beside": they do neither, and are
               there for what reads the columns

    Column `expert (B,)` is 1 on them, and `expert_log_probs (B, T)` has on every row of a group the log-probs of its
    first one, token by token, 0 behind its end and where there is none. The policy gives their old log-probs in a
    pass; the end token is added. Source: arXiv 2504.14945, section 3.1; the shaping of the ratio is a trust region's
    business.
    """

    columns = {"expert": 0.0}
    made = ("expert_log_probs",)

    def __init__(
        self,
        *,
        column: str = "demonstrations",
        count: int = 1,
        behaviour: str = "policy",
        joins: Literal["group", "loss", "beside"] = "group",
    ) -> None:
        if behaviour not in BEHAVIOURS or behaviour == "given":
            raise ConfigError(f"rollout 'demonstrations': behaviour is policy or one, got {behaviour!r}: texts bring "
                              "no log-probs along")  # fmt: skip
        if joins not in ("group", "loss", "beside"):
            raise ConfigError(f"rollout 'demonstrations': joins={joins!r}; expected 'group', 'loss' or 'beside'")
        self.column, self.count, self.behaviour, self.joins = column, count, behaviour, joins
        self.data_columns = (column,)
        self.origins = (brought("demonstration", behaviour),)
        self._seen: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        groups = sorted(set(batch.group.tolist()))
        if step.round == 1:
            self._seen = set()
        new = [g for g in groups if g not in self._seen]
        self._seen |= set(new)
        behaviour: Behaviour = "one" if self.behaviour == "one" else "policy"
        given = [Given("demonstration", behaviour, group=g, columns={"expert": 1.0}) for g in new]
        if self.joins == "group":
            return Plan(given=given) if given else None
        own = batch["expert"] == 0
        return Plan(given=given, counted=own, trained=torch.ones_like(own) if self.joins == "loss" else own)

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"expert_log_probs": of_the_first(batch.old_log_probs * batch.mask, batch["expert"] > 0, batch)}

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        """Texts of the prompt's column, at most `count`."""
        value = prompt.columns.get(self.column)
        texts = texts_of(value, f"prompt {prompt.id!r}: column {self.column!r}")
        return list(texts[: self.count])


def of_the_first(values: Tensor, chosen: Tensor, batch: Batch) -> Tensor:
    """(B, T) on each row the `values (B, T)` of the first `chosen (B,)` member of its group, 0 where there is none."""
    out = torch.zeros_like(values)
    for group in torch.unique(batch.group[chosen]).tolist():
        rows = ((batch.group == group) & chosen).nonzero().squeeze(1)
        out[batch.group == group] = values[rows[batch.member[rows].argmin()]]
    return out


def texts_of(value: Any, where: str) -> list[str]:
    """A text or a list of texts, None for none; anything else is refused by `where`."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) and t for t in texts):
        raise DataError(f"{where}: expected a text or a list of texts that are not empty, got {value!r:.80}")
    return list(texts)
