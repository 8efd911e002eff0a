"""Which prompts now: what a sampler is, the default one, and how a data set learns what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch

from mmrl.errors import DataError, unknown
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.shown import tell
from mmrl.stages import stage


class Sampler(Protocol):
    """Stage 1. Every rank asks its own copy, with the same key and outcomes, and gets the same answer.

    A sampler may have `coming(count, size, key)` too: what `select` would return, without taking it. Then clips of
    the next step are decoded while this one trains. It may guess before the outcomes of this step are observed.
    One that reads columns of the data set has `meet(prompts)`, called once before the first step, and before its state
    is loaded in a run that goes on.
    """

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`."""
        ...

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """What became of them: group g of the batch answers dataset row `indices[g]`, or no row where it is None."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def unhelped(batch: Batch) -> Batch:
    """The rows that say how hard prompts are: without given and hinted ones.

    Rows that left the baseline of their group for those that were helped count here.
    """
    if batch.helped is None or not batch.helped.any():
        return batch
    touched = torch.isin(batch.group, torch.unique(batch.group[batch.helped]))
    alone = ~batch.helped
    return replace(batch, counted=(batch.counted | touched) & alone).index(alone.nonzero().squeeze(1))


@runtime_checkable
class Prefetching(Protocol):
    """Prompts that can be made ready before they are asked for, such as `mmrl.data.ahead.Ahead`."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """These are asked for soon, in this order; what was announced before and is not among them is not."""
        ...


def column(prompts: Sequence[Prompt], index: int, name: str, reader: str) -> Any:
    """The column of a dataset row, without opening its media where that can be; DataError where it has none."""
    cheap = getattr(prompts, "columns", None)
    columns = cheap(index) if cheap is not None else None
    columns = prompts[index].columns if columns is None else columns
    if columns.get(name) is None:
        raise DataError(
            f"row {index} of the data set: {reader} reads its column {name!r}: {unknown('column', name, columns)}"
        )
    return columns[name]


def introduce(prompts: Sequence[Prompt], *readers: object) -> None:
    """Let samplers and strategies that read the data set have it: those with `meet(prompts)`."""
    for reader in readers:
        if (meet := getattr(reader, "meet", None)) is not None:
            meet(prompts)


@stage("prompts", "shuffled", paper="-", confidence="ours", formula="a new permutation of all prompts each epoch")
class Shuffled:
    """Every prompt once an epoch, in an order keyed by (seed, epoch). Remembers how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """The next `count` dataset indices out of `size`."""
        indices = self.coming(count, size, key)
        self.taken += count
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        indices: list[int] = []
        while len(indices) < count:
            epoch, place = divmod(self.taken + len(indices), size)
            order = torch.randperm(size, generator=Key(key.seed, epoch, purpose="shuffle").generator())
            indices += order[place : place + count - len(indices)].tolist()
        return indices

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """A plain shuffle learns nothing from outcomes."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]


def take_up(sampler: Sampler, state: Mapping[str, Any], rows: int) -> None:
    """Let a sampler know what it knew when `state` was saved, in a run on a data set of `rows` rows.

    It knows prompts by their place. With more rows than then it goes on, and says so; with fewer, DataError, unless it
    only shuffles: it might ask for one that is gone.
    """
    then = state.get("rows", rows)
    if rows != then:
        change = f"the data set had {then} rows when this run was saved, and has {rows} now"
        if rows < then and not isinstance(sampler, Shuffled):
            raise DataError(
                f"{change}: a sampler that remembers prompts knows them by their place. Go on with the data of that "
                "time (data.train, data.limit), or start a new run from the weights (mmrl export)"
            )
        tell(f"{change}: prompts are known by their place, so the first {min(then, rows)} should be the same as then")
    sampler.load_state_dict(state["sampler"])
