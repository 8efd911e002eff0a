"""What other projects call things, and what they are called here: one table a project.

A table says of each of their names one of three things: our key that takes the same value, another way to say it, or
that it is not here, with the reason. The tables answer foreign keys in a configuration, fill docs/coming_from.md, and
drive `mmrl from-trl`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.foreign import easyr1, flow_grpo, trl, verl
from mmrl.foreign.table import Table

TABLES: tuple[Table, ...] = (trl.TABLE, verl.TABLE, easyr1.TABLE, flow_grpo.TABLE)
SHOWN = 4
"""Names of a foreign section that an error answers; docs/coming_from.md has the others."""


def answer(key: str, value: Any = None, below: bool = True) -> str:
    """What a name of another project is here, for an error message; "" where no project has it.

    value  what stands behind it in the configuration: where it is a section of theirs, its names are answered; a
           section's own name with anything else behind it is not theirs
    below  a section of theirs answers for every name below it; else their own names alone are answered
    """
    if isinstance(value, Mapping) and value:
        return _of_section(list(_names(key, value)))
    below = below and "." in key
    return next((_said(t, key) for t in TABLES if t.says(key)), "") or next(
        (_said(t, key) for t in TABLES if t.lacks(key, below)), ""
    )


def _said(table: Table, name: str) -> str:
    if said := table.says(name):
        return f"what {table.project} calls {name} is {said}"
    return f"{table.project}'s {name} is not here: {why}" if (why := table.lacks(name)) else ""


def _of_section(names: list[str]) -> str:
    """By the project that knows most of the names, by themselves rather than by their section. A name that stands in
    no section of its project, such as one of `quantization_config`, is known by its last part."""
    told = max((_told(table, names) for table in TABLES), key=lambda answers: answers[0])[1]
    more = len(told) - SHOWN
    return "; ".join([*told[:SHOWN], *([f"and {more} more, see docs/coming_from.md"] if more > 0 else [])])


def _told(table: Table, names: list[str]) -> tuple[tuple[int, int], list[str]]:
    """(how many names stand in the table, how many are answered), the answers."""
    own = {*table.keys, *table.ways, *table.absent}
    said = [found for name in names if (found := _said(table, name) or _said(table, name.rpartition(".")[2]))]
    return (sum(name in own for name in names), len(said)), said


def _names(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _names(f"{key}.{name}", below)
    else:
        yield key
