"""Lists of digits to put in another order: text alone, for language models that write without looking."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from mmrl.data.worlds.questions import Question, World, question_columns
from mmrl.record import Prompt

ORDERS: dict[str, tuple[str, Callable[[list[int]], list[int]]]] = {
    "reverse": ("Say this from right to left", lambda digits: digits[::-1]),
    "sort": ("Say this from small to big", sorted),
    "rotate": ("Say this with the first at the end", lambda digits: [*digits[1:], digits[0]]),
}


class Lists(World):
    """`level` + 2 different digits, and the order in which to say them."""

    name = "lists"
    offers = tuple(ORDERS)

    def scene(self, rng: random.Random, level: int, split: str) -> dict[str, Any]:
        return {"skill": rng.choice(self.skills), "digits": rng.sample(range(10), level + 2)}

    def ask(self, scene: dict[str, Any]) -> Question:
        words, order = ORDERS[scene["skill"]]
        digits = scene["digits"]
        answer = " ".join(map(str, order(digits)))
        return Question(f"{words}: {' '.join(map(str, digits))}", answer, "exact", scene["skill"])

    def prompt(self, scene: dict[str, Any], id: str, columns: dict[str, Any]) -> Prompt:
        question = self.ask(scene)
        messages = [{"role": "user", "content": question.text}]
        return Prompt(id=id, messages=messages, columns=columns | question_columns(question))
