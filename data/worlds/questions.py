"""A question about a scene, and the base of the worlds that show one still picture."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.record import Prompt


@dataclass(frozen=True)
class Question:
    """text      what is asked
    solution  the one right answer, as a string the reward of `task` can read
    task      the reward that checks it: exact, numeric, box, temporal
    skill     what it takes to answer: count, color, position, ...
    """

    text: str
    solution: str
    task: str
    skill: str


class World(ABC):
    """A family of scenes. `scene` draws one, `prompt` asks about it; both are pure."""

    name: str
    offers: tuple[str, ...] = ()

    def __init__(self, skills: tuple[str, ...] = ()) -> None:
        self.skills = skills or self.offers

    @classmethod
    def open(cls, root: str | Path | None, skills: tuple[str, ...]) -> World:
        """The world, asking only for these of its `offers`; one that writes files writes them under `root`."""
        return cls(skills)

    @abstractmethod
    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        """A JSON-able scene; drawn again until its hash falls into `split`."""

    @abstractmethod
    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        """The prompt that asks about a scene; `columns` go with it."""


class Still(World):
    """A world of one picture and one question."""

    @abstractmethod
    def ask(self, scene: dict[str, Any]) -> Question:
        """The question of a scene, with its answer."""

    @abstractmethod
    def render(self, scene: dict[str, Any]) -> Any:
        """The scene as a PIL image."""

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        question = self.ask(scene)
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        return Prompt(
            id=id,
            messages=[{"role": "user", "content": content}],
            images=[self.render(scene)],
            columns=columns | question_columns(question),
        )


def question_columns(question: Question) -> dict[str, str]:
    return {"solution": question.solution, "task": question.task, "skill": question.skill}
