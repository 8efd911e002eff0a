"""One project's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LONG_ENOUGH = 7
"""Letters of the last part of a dotted name: `n`, `name`, `enable` would answer for everybody's."""


@dataclass(frozen=True)
class Table:
    """A project's names, each in one of three mappings; dotted names are its sections.

    project  as people call it, and `version` whose names these are
    keys     {name: our key}, which takes the same value
    ways     {name: how the same is said here}
    absent   {name: why there is no such thing here}
    """

    project: str
    version: str
    keys: Mapping[str, str]
    ways: Mapping[str, str]
    absent: Mapping[str, str]

    def __post_init__(self) -> None:
        names = [*self.keys, *self.ways, *self.absent]
        twice = sorted({n for n in names if names.count(n) > 1})
        assert not twice, f"{self.project}: {twice} stand twice"

    def says(self, name: str) -> str:
        """Our key, or the way; "" where there is neither. A dotted name is also found by its last part, where that is
        long enough to mean one thing."""
        full = name
        if name not in self.keys and name not in self.ways and len(name) >= LONG_ENOUGH:
            ends = [n for n in (*self.keys, *self.ways) if n.rpartition(".")[2] == name]
            full = ends[0] if len(ends) == 1 else name
        return self.keys.get(full) or self.ways.get(full) or ""

    def rows(self) -> Iterator[tuple[str, str]]:
        """(name, what it is here), by name."""
        told = {n: f"`{k}`" for n, k in self.keys.items()} | dict(self.ways)
        told |= {n: f"not here: {why}" for n, why in self.absent.items()}
        yield from sorted(told.items())
