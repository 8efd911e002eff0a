"""What other projects call things, and what they are called here: one table a project.

A table says of each of their names one of three things: our key that takes the same value, another way to say it, or
that it is not here, with the reason. The tables answer foreign keys in a configuration, fill docs/coming_from.md, and
drive `mmrl from-trl`.
"""

from __future__ import annotations

from mmrl.foreign import easyr1, flow_grpo, trl, verl
from mmrl.foreign.table import Table

TABLES: tuple[Table, ...] = (trl.TABLE, verl.TABLE, easyr1.TABLE, flow_grpo.TABLE)


def answer(key: str) -> str:
    """What a name of another project is here, for an error message; "" where no project has it."""
    for table in TABLES:
        if said := table.says(key):
            return f"what {table.project} calls {key} is {said}"
    for table in TABLES:
        if key in table.absent:
            return f"{table.project}'s {key} is not here: {table.absent[key]}"
    return ""
