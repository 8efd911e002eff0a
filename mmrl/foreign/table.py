"""One project's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

LONG_ENOUGH = 7
"""Letters of the last part of a dotted name: `n`, `name`, `enable` would answer for everybody's."""
CLEAR = frozenset({"n", "lr", "lam", "cfg", "betas", "gamma", "top_k", "top_p", "logger", "nnodes"})
"""Shorter ones that mean one thing wherever they stand."""


@dataclass(frozen=True)
class Table:
    """A project's names, each in one of three mappings; dotted names are its sections.

    project   as people call it, and `version` whose names these are
    keys      {name: our key}, which takes the same value
    ways      {name: how the same is said here}
    absent    {name: why there is no such thing here}
    sections  {the beginning of names: what is said of each of them that stands nowhere else}
    """

    project: str
    version: str
    keys: Mapping[str, str]
    ways: Mapping[str, str]
    absent: Mapping[str, str]
    sections: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.keys, *self.ways, *self.absent]
        twice = sorted({n for n in names if names.count(n) > 1})
        assert not twice, f"{self.project}: {twice} stand twice"

    def says(self, name: str) -> str:
        """Our key, or the way; "" where there is neither. A dotted name is also found by its last part, where that is
        long enough to mean one thing."""
        full = self._full(name, (*self.keys, *self.ways))
        above = name.rpartition(".")[0]  # of a pair such as `data.custom_cls.path` and `.name`
        return self.keys.get(full) or self.ways.get(full) or ("." in above and self.ways.get(above)) or ""

    def lacks(self, name: str, sections: bool = True) -> str:
        """Why there is no such thing here; "" where that is not said. A section answers for the names below it."""
        why = self.absent.get(self._full(name, tuple(self.absent)))
        above = self.sections.items() if sections else ()
        return why or next((said for start, said in above if f"{name}.".startswith(f"{start}.")), "")

    def _full(self, name: str, names: tuple[str, ...]) -> str:
        if name in names or (len(name) < LONG_ENOUGH and name not in CLEAR):
            return name
        ends = sorted((n for n in names if n.rpartition(".")[2] == name), key=_depth)
        alone = ends and (
            len(ends) == 1 or _depth(ends[0]) < _depth(ends[1])
        )  # `rollout.n`, not `rollout.val_kwargs.n`
        return ends[0] if alone else name

    def rows(self) -> Iterator[tuple[str, str]]:
        """(name, what it is here), by name."""
        told = {n: f"`{k}`" for n, k in self.keys.items()} | dict(self.ways)
        told |= {n: f"not here: {why}" for n, why in self.absent.items()}
        told |= {f"{n}.*": f"not here: {why}" for n, why in self.sections.items()}
        yield from sorted(told.items())


def _depth(name: str) -> int:
    return name.count(".")
