"""What every data set is: a sequence of prompts, each made when it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, overload

from mmrl.record import Prompt


class Prompts(Sequence[Prompt]):
    """`prompts[7]` makes one prompt, `prompts[:4]` a list of them; negative indices count from the end."""

    @abstractmethod
    def prompt(self, index: int) -> Prompt:
        """The prompt at `index`, 0 to len(self) - 1."""

    @abstractmethod
    def ids(self) -> list[str]:
        """The ids of all prompts, in order; no media is made or opened."""

    def columns(self, index: int) -> Mapping[str, Any] | None:
        """The columns of the prompt at `index` where they can be had without its media; None where not."""
        return None

    def where(self, index: int) -> str:
        """Where the prompt at `index` comes from, as a person would look it up; "" where there is no such place."""
        return ""

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self.prompt(i) for i in range(*index.indices(len(self)))]
        return self.prompt(self.position(index))

    def position(self, index: int) -> int:
        """0 to len(self) - 1; raises IndexError for what is outside."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        return index % len(self)
