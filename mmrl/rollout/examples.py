"""Solved prompts as examples for unsolved ones: what strategies that seed a context remember and show."""

from __future__ import annotations

from typing import Any

from mmrl.objective.groups import representatives
from mmrl.record import Batch
from mmrl.rollout.hints import worth
from mmrl.rollout.plan import Step
from mmrl.selection.likeness import nearest


class Examples:
    """The latest `size` prompts that were solved, each with its shortest right answer, the same on all ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.known: dict[str, str] = {}

    def learn(self, batch: Batch, step: Step, above: float = 0.5) -> None:
        """Remember the prompts of this step that the policy solved by itself, as `step.texts` has them."""
        right = (worth(batch) > above) & batch.counted & ~batch.helped
        for row in representatives(batch.group).tolist():
            group = int(batch.group[row])
            members = batch.member[right & (batch.group == group)].tolist()
            answers = [step.texts[group, m] for m in members if (group, m) in step.texts]
            if answers and group in step.asked:
                question = step.asked[group]
                self.known.pop(question, None)
                self.known[question] = min(answers, key=lambda text: (len(text), text))
        while len(self.known) > self.size:
            del self.known[next(iter(self.known))]

    def like(self, question: str, count: int) -> list[tuple[str, str]]:
        """(question, answer) of the solved prompts most like `question`, itself left out."""
        others = [known for known in self.known if known != question]
        return [(others[i], self.known[others[i]]) for i in nearest(question, others, count)]

    def state(self) -> list[list[str]]:
        return [[question, answer] for question, answer in self.known.items()]

    def load(self, state: Any) -> None:
        self.known = {question: answer for question, answer in state}
