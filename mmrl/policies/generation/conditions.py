"""What rows of a flow policy are conditioned on: stored once for each prompt, wherever its rows go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.generation.families.base import Conditions, moved, nbytes


@dataclass(eq=False)
class PromptConditions:
    """One prompt as the transformer reads it, on the CPU.

    given     what its first call is given besides state and time
    negative  the same for the unconditional pass; None without guidance. Prompts without media share one
    """

    given: Conditions
    negative: Conditions | None = None

    @property
    def nbytes(self) -> int:
        return nbytes(self.given) + (0 if self.negative is None else nbytes(self.negative))


@dataclass
class Conditioned:
    """N rows, of which `index (N,)` points into P prompts; None as negatives without guidance."""

    given: list[Conditions]
    negative: list[Conditions] | None
    index: Tensor

    @classmethod
    def of(cls, prompts: Sequence[PromptConditions], index: Tensor, device: torch.device) -> Conditioned:
        """On the device, a negative that prompts share moved once."""
        given = [moved(prompt.given, device) for prompt in prompts]
        if not prompts or prompts[0].negative is None:
            return cls(given, None, index)
        shared: dict[int, Conditions] = {}
        for prompt in prompts:
            assert prompt.negative is not None
            if id(prompt.negative) not in shared:
                shared[id(prompt.negative)] = moved(prompt.negative, device)
        return cls(given, [shared[id(prompt.negative)] for prompt in prompts], index)

    def rows(self, rows: Tensor) -> Conditioned:
        return replace(self, index=self.index[rows.to(self.index.device)])

    def listed(self) -> tuple[list[Conditions], list[Conditions] | None]:
        """N entries: the conditions of each row, and of its unconditional pass."""
        places = self.index.tolist()
        negative = None if self.negative is None else [self.negative[p] for p in places]
        return [self.given[p] for p in places], negative


class ConditionCache:
    """The prompts used last, as many as fit in `limit` bytes."""

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self._entries: OrderedDict[Any, PromptConditions] = OrderedDict()

    def get(self, key: Any) -> PromptConditions | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Any, entry: PromptConditions) -> None:
        self._entries[key] = entry
        self.held += entry.nbytes
        while self.held > self.limit and self._entries:
            _, dropped = self._entries.popitem(last=False)
            self.held -= dropped.nbytes
