"""Rows whose media cannot be read, left out by choice: another row stands in, each is named, and there is a ceiling.

The next row that can be read stands in: the files alone decide which, so a resumed run and every rank see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrl.data.prompts import Prompts
from mmrl.errors import DataError
from mmrl.record import Prompt
from mmrl.selection.prompts import Prefetching
from mmrl.shown import tell


class Skipping(Prompts):
    """`prompts`, in which the next row that can be read stands in for one that cannot.

    ceiling   share of the rows that may be left out, though always one; past it a DataError
    read      reads a clip as the policy will, so that a damaged one is met here; None: only images are opened
    left_out  {row: why}, shared with whatever else reads these rows
    """

    def __init__(
        self, prompts: Sequence[Prompt], ceiling: float, read: Callable[[Any], Any] | None = None,
        left_out: dict[int, str] | None = None,
    ):  # fmt: skip
        self.prompts, self.ceiling, self.read = prompts, ceiling, read
        self.left_out = {} if left_out is None else left_out

    def over(self, prompts: Sequence[Prompt], read: Callable[[Any], Any] | None) -> Skipping:
        """The same rows made ready by others: what is left out is counted once."""
        return Skipping(prompts, self.ceiling, read, self.left_out)

    def __len__(self) -> int:
        return len(self.prompts)

    def ids(self) -> list[str]:
        return self.prompts.ids() if isinstance(self.prompts, Prompts) else [p.id for p in self.prompts]

    def columns(self, index: int) -> Mapping[str, Any] | None:
        return self.prompts.columns(index) if isinstance(self.prompts, Prompts) else None

    def where(self, index: int) -> str:
        return self.prompts.where(index) if isinstance(self.prompts, Prompts) else ""

    def prefetch(self, indices: Sequence[int]) -> None:
        if isinstance(self.prompts, Prefetching):
            self.prompts.prefetch([i for i in indices if i not in self.left_out])

    def __getattr__(self, name: str) -> Any:
        """What is written down of a data set: `source`, `format`, `repeated`."""
        if name.startswith("_") or name == "prompts":
            raise AttributeError(name)
        return getattr(self.prompts, name)

    def prompt(self, index: int) -> Prompt:
        for later in range(len(self)):
            row = (index + later) % len(self)
            if row in self.left_out:
                continue
            try:
                return self._opened(row)
            except DataError as error:
                self._leave_out(row, error)
        raise DataError(f"none of {len(self)} rows can be read")

    def _opened(self, row: int) -> Prompt:
        prompt = self.prompts[row]
        for clip in prompt.videos if self.read is not None else ():
            self.read(clip)  # type: ignore[misc]
        return prompt

    def _leave_out(self, row: int, error: DataError) -> None:
        self.left_out[row] = str(error)
        if len(self.left_out) > max(1, self.ceiling * len(self)):
            raise DataError(
                f"{len(self.left_out)} of {len(self)} rows cannot be read, data.skip_ceiling={self.ceiling:g} allows "
                f"{max(1, int(self.ceiling * len(self)))}; the last: {error}"
            ) from None
        tell(f"{error}; left out, the next row that can be read stands in (data.on_error=skip)")
