"""Skills written from failures, and the failures they were written from kept out of what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, hinter_of, with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

SKILLS = "Keep in mind:\n{skills}"
EVOLVE = (
    "These answers to the above were all wrong:\n{answers}\n\nWrite one short rule, of at most 32 words, that would "
    "have helped here and with questions like this one. Write the rule alone."
)


@stage(
    "rollout",
    "metaclaw",
    paper="MetaClaw: an agent that meta-learns in the wild, arXiv 2603.17187; code aiming-lab/MetaClaw",
    formula="rows carry the generation g of the skills they saw; failures that a skill is written from are support, "
    "others of the generation of now are query; the loss is over query rows alone, and a new skill makes g + 1",
    confidence="partly",
    modalities=LANGUAGE,
)
class MetaClaw(Strategy):
    """Skills in text that adapt at once, and weights that learn only from what came after them.

    most     skills that are kept; the oldest beyond them go
    evolve   failed groups of a step that a skill is written from; the others train as any
    words    of a skill, at most: a longer text is no use
    hinter   who writes skills: "policy", or "teacher", the model of `policy.teacher`
    skills, template  what is put behind the user's words, {skills} in it; what the writer is asked, {answers} in it

    Column `support (B,)` is 1 on the failed groups that a skill was asked of: they neither count nor train. Column
    `generation (B,)` says how many times the skills had changed when a row was asked for, -1 on rows of other
    strategies; a row of an earlier generation than the one in force, as a step that was written ahead has, is stale:
    its reward says nothing of the agent of now, and it neither counts nor trains. `metaclaw/...` in the metrics count
    skills, support and stale rows. Skills stand in the prompts that train. Source: data_formatter.py
    (`skill_generation` of a sample), trainer.py and skill_evolver.py; which failures are chosen is ours.
    """

    origins = (OWN, SHOWN)
    columns = {"generation": -1.0}
    made = ("support",)
    apart = True

    def __init__(
        self, *, most: int = 16, evolve: int = 1, words: int = 64, hinter: str = "policy", skills: str = SKILLS,
        template: str = EVOLVE,
    ) -> None:  # fmt: skip
        if min(most, words) < 1 or evolve < 0:
            raise ConfigError(
                f"rollout 'metaclaw': most={most}, evolve={evolve}, words={words}; expected 1 or more, and 0 or more "
                "for evolve"
            )
        filled(skills, "rollout 'metaclaw'", skills="")
        filled(template, "rollout 'metaclaw'", answers="")
        self.most, self.evolve, self.words = most, evolve, words
        self.writer = hinter_of("rollout 'metaclaw'", hinter)
        self.head, self.template = skills, template
        self.skills: list[str] = []
        self.generation = 0
        self._learned: list[str] = []
        self._support: list[int] = []
        self._left_out = {"support": 0, "stale": 0}

    def ask(self, step: Step) -> Plan | None:
        note = tuple(self.skills) or None
        columns = {"generation": float(self.generation)}
        kind: Any = {"note": ("skills", note), "trains": "shown"} if note else {}
        indices = step.draw(step.prompts_per_step)
        return Plan([Ask(step.group_size, index=i, columns=columns, **kind) for i in indices])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        """Once, skills from some of the failures; and masks, of what is support and what is stale."""
        asks = []
        if step.round == 1:
            self._support = failed_groups(batch)[: self.evolve]
            asks = [
                Ask(1, group=g, note=("evolve",), aside=True, writer=self.writer, whole=True) for g in self._support
            ]
        query = (self._supports(batch) == 0) & ~self._stale(batch)
        return Plan(asks, counted=query, trained=query)

    def _supports(self, batch: Batch) -> Tensor:
        """(B,) 1 on support."""
        return torch.isin(batch.group, torch.tensor(self._support, device=batch.group.device)).float()

    def _stale(self, batch: Batch) -> Tensor:
        """(B,) bool: asked for under skills that have changed since."""
        return (batch["generation"] >= 0) & (batch["generation"] < self.generation)

    def make(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"support": self._supports(batch)}

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        kind, *rest = ask.note
        if kind == "skills":
            listed = "\n".join(f"- {skill}" for skill in rest[0])
            return with_text(prompt, filled(self.head, "metaclaw", skills=listed), "skills")
        assert rows is not None
        answers = "\n".join(f"- {' '.join(str(text).split())}" for text in rows.outputs)
        return with_text(prompt, filled(self.template, "metaclaw", answers=answers), "evolve")

    def usable(self, ask: Ask, prompt: Prompt, texts: list[str]) -> list[str]:
        return [text for text in texts if 0 < len(text.split()) <= self.words]

    def heard(self, ask: Ask, texts: list[str]) -> None:
        self._learned += [" ".join(text.split()) for text in texts]

    def observe(self, batch: Batch, step: Step) -> None:
        """Skills that were written in this step hold from the next request on, as a new generation."""
        self._left_out = {"support": int(self._supports(batch).sum()), "stale": int(self._stale(batch).sum())}
        new = [skill for skill in dict.fromkeys(self._learned) if skill not in self.skills]
        self._learned = []
        if new:
            self.skills = [*self.skills, *new][-self.most :]
            self.generation += 1

    def counted(self) -> dict[str, float]:
        return {"skills": len(self.skills), "generation": self.generation, **self._left_out}

    def state_dict(self) -> dict[str, Any]:
        return {"skills": list(self.skills), "generation": self.generation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skills, self.generation = list(state["skills"]), state["generation"]
