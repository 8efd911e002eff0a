"""Who is who in a step: groups and their data set rows, and members, numbered per prompt over all ranks.

Draws are keyed by (seed, step, prompt id, member). So a prompt that is asked twice in a step, in another group or by
two selections, goes on counting, and every rollout of it is another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Numbering:
    """indices  data set row that group g asks, or None where it is not of the data set"""

    def __init__(self) -> None:
        self.indices: list[int | None] = []
        self._asked: Counter[str] = Counter()
        self._prompt: dict[int, str] = {}

    def open(self, prompts: Iterable[tuple[int, str]]) -> None:
        """Groups and the ids of the prompts they answer, of all ranks."""
        self._prompt.update(prompts)

    def take(self, group: int, count: int) -> int:
        """The number of the first of `count` further members. Every rank must ask for every group, in one order."""
        prompt = self._prompt[group]
        first = self._asked[prompt]
        self._asked[prompt] += count
        return first
