"""How many optimizer steps a rollout batch serves, and which of them a row belongs to.

With one update every ratio is 1, and a ratio, clip, gate or hinge cannot act: methods whose point they are need the
updates of their paper. A smaller run makes fewer, of at least `LEAST_GROUPS` groups each; it never makes up for them
with epochs, which would show each rollout more often than its authors did.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmrl.randomness import Key
from mmrl.record import Batch
from mmrl.settings import Section

LEAST_GROUPS = 2


class Updates(Section):
    """count   optimizer steps of one pass over a rollout batch, each on groups of its own
    epochs  passes over a rollout batch; each assigns groups to optimizer steps anew

    What is left out is as the recipe's paper has it, the count where the batch has the groups for it; without a
    recipe both are 1. `auto` leaves out both.
    """

    count: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, values: Any) -> Any:
        if values == "auto":
            return {}
        if isinstance(values, dict) and values.get("name") == "auto":  # an override of a part of `auto`
            return {k: v for k, v in values.items() if k != "name"}
        return values


def updates_a_batch(count: int, prompts: int) -> int:
    """Of a paper's `count`, what `prompts` groups serve: 3 of VPPO's 3 at 8 prompts, 4 of DAPO's 16."""
    return min(count, max(prompts // LEAST_GROUPS, 1))


def assign_updates(batch: Batch, count: int, epoch: int = 0) -> Tensor:
    """(B,) the optimizer step of each row in this epoch: whole groups, split as evenly as they go.

    Groups that train are split, in the order they were asked for in the first epoch and shuffled in the others, by a
    key of (seed, step, epoch). A selection that put rows into a further round (`batch.update` 1, 2, ...) has
    them behind all optimizer steps of the round before.
    """
    ids, place = torch.unique(batch.group, return_inverse=True)
    trains = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    trains[place[batch.trained.to(ids.device)]] = True
    order = torch.arange(len(ids))
    if epoch:
        order = torch.randperm(len(ids), generator=Key(batch.seed, batch.step, purpose=f"epoch {epoch}").generator())
    order = order.to(ids.device)
    order = torch.cat([order[trains[order]], order[~trains[order]]])
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    split = (rank * count // max(int(trains.sum()), 1)).clamp(max=count - 1)
    return split[place].to(batch.update) + batch.update * count
