"""From what the policy believes to what people know: unlabelled prompts first, then labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.errors import ConfigError, DataError
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.selection.labelled import is_labelled
from mmrl.selection.prompts import Shuffled, column
from mmrl.stages import stage


@stage(
    "prompts",
    "medssr",
    paper="MedSSR, arXiv 2604.11547",
    formula="prompts without a truth for `steps` steps, then those with one",
    confidence="partly",
)
class TwoStages:
    """Self-supervised, then supervised: which rows a step asks changes once in a run.

    steps   of the first stage, all of whose prompts are unlabelled
    column  of the data set that says whether a row has a truth, true or false

    Each stage is shuffled by itself. A step never mixes them. Pair it with reward `medssr`, which lets unlabelled
    groups vote. Source: the paper's abstract and README; it trains whole epochs of each stage, and names no number.
    """

    def __init__(self, *, steps: int = 100, column: str = "labelled") -> None:
        if steps < 0:
            raise ConfigError(f"prompts 'medssr': steps={steps}; expected 0 or more")
        self.steps, self.column = steps, column
        self.rows: dict[bool, list[int]] = {}
        self.shuffled = {False: Shuffled(), True: Shuffled()}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn which rows have a truth."""
        self.rows = {False: [], True: []}
        for index in range(len(prompts)):
            try:
                said = is_labelled(column(prompts, index, self.column, "prompts 'medssr'"))
            except ValueError as error:
                raise DataError(f"row {index} of the data set: column {self.column!r}: {error}") from None
            self.rows[said].append(index)
        if empty := [name for said, name in ((False, "unlabelled"), (True, "labelled")) if not self.rows[said]]:
            raise DataError(
                f"prompts 'medssr': none of the {len(prompts)} rows is {empty[0]} by column {self.column!r}, and one "
                "of the two stages would be empty"
            )

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`."""
        indices = self.coming(count, size, key)
        self.shuffled[self._stage(key)].taken += count
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        if not self.rows:
            raise ConfigError("prompts 'medssr' has not met the data set: call `meet(prompts)` first")
        stage = self._stage(key)
        rows = self.rows[stage]
        return [rows[place] for place in self.shuffled[stage].coming(count, len(rows), key)]

    def _stage(self, key: Key) -> bool:
        return key.step >= self.steps

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """The stages change by the number of the step, whatever came of it."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": [self.shuffled[False].taken, self.shuffled[True].taken]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shuffled[False].taken, self.shuffled[True].taken = map(int, state["taken"])
