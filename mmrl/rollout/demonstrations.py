"""Answers of others among a group's own: the slot of every method that mixes imitation into a group."""

from __future__ import annotations

from typing import Any

from mmrl.errors import ConfigError, DataError
from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.plan import BEHAVIOURS, Behaviour, Given, Plan, Step, Strategy
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

    Column `expert (B,)` is 1 on them. The policy gives their old log-probs in a pass; the end token is added. Source:
    arXiv 2504.14945, section 3.1; the shaping of the ratio is a trust region's business.
    """

    columns = {"expert": 0.0}

    def __init__(self, *, column: str = "demonstrations", count: int = 1, behaviour: str = "policy") -> None:
        if behaviour not in BEHAVIOURS or behaviour == "given":
            raise ConfigError(f"rollout 'demonstrations': behaviour is policy or one, got {behaviour!r}: texts bring "
                              "no log-probs along")  # fmt: skip
        self.column, self.count, self.behaviour = column, count, behaviour
        self.data_columns = (column,)
        self._seen: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        groups = sorted(set(batch.group.tolist()))
        if step.round == 1:
            self._seen = set()
        new = [g for g in groups if g not in self._seen]
        self._seen |= set(new)
        behaviour: Behaviour = "one" if self.behaviour == "one" else "policy"
        given = [Given("demonstration", behaviour, group=g, columns={"expert": 1.0}) for g in new]
        return Plan(given=given) if given else None

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        """Texts of the prompt's column, at most `count`."""
        value = prompt.columns.get(self.column)
        texts = texts_of(value, f"prompt {prompt.id!r}: column {self.column!r}")
        return list(texts[: self.count])


def texts_of(value: Any, where: str) -> list[str]:
    """A text or a list of texts, None for none; anything else is refused by `where`."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) and t for t in texts):
        raise DataError(f"{where}: expected a text or a list of texts that are not empty, got {value!r:.80}")
    return list(texts)
