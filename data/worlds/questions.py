"""A question about a scene, and the base of the worlds that show one still picture."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
    sizes: ClassVar[dict[str, int]] = {"train": 4096, "test": 256}
    """Prompts of a split, where nobody says how many."""

    def __init__(self, skills: tuple[str, ...] = ()) -> None:
        self.skills = skills or self.offers

    @classmethod
    def open(cls, root: str | Path | None, skills: tuple[str, ...]) -> World:
        """The world, asking only for these of its `offers`; one that writes files writes them under `root`."""
        return cls(skills)

    @abstractmethod
    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        """A JSON-able scene; drawn again until its hash falls into `split`."""

    def held_out(self, scene: dict[str, Any], asked: Counter[Any]) -> dict[str, Any]:
        """A held-out scene, and what is asked about it chosen after what was `asked` of those before it."""
        return scene

    @abstractmethod
    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        """The prompt that asks about a scene; `columns` go with it."""


def asked_rarest(scene: dict[str, Any], answers: dict[Any, str], asked: Counter[Any]) -> dict[str, Any]:
    """A scene that could be asked about several places, asked about the one whose answer is the rarest there so far: a
    guess is then right as often as any other, and held-out success above chance is no luck of the draw.

    answers  {place: what is right there}; what `asked` holds is (place, answer)
    """
    order = [scene["asked"], *(place for place in answers if place != scene["asked"])]
    place = min(order, key=lambda place: asked[place, answers[place]])
    asked[place, answers[place]] += 1
    return scene | {"asked": place}


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
    """A world knows the whole answer, so it demonstrates it too."""
    answer = question.solution
    return {"solution": answer, "task": question.task, "skill": question.skill, "demonstrations": answer}
