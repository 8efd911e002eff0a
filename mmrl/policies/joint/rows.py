"""Rows of several stretches, one behind the other on the action axis, and what each was on its own.

A stretch keeps its columns, actions and padding alike, so that rows of any widths concatenate; `replay["stretch"]` says
whose they are, from 1, 0 for what stands between and behind. What a policy stored of its part to score it again stands
in `replay` under the stretch's number, `0|latents`, and its encoding of what it was asked in the row's own entry of
`encoded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.batch import KINDS, TRUNCATED
from mmrl.errors import PolicyError
from mmrl.kinds import Places
from mmrl.record import Prompt, Rollouts
from mmrl.told import Told

STRETCH, COLUMN = "stretch", "column "


@dataclass
class Entries:
    """What the policies made of what they were asked in one row, a stretch each."""

    each: list[Any]

    def __len__(self) -> int:
        """Tokens of the prompt, where the writer says."""
        return len(self.each[0]) if hasattr(self.each[0], "__len__") else 0


def joined(
    parts: Sequence[Rollouts], kinds: Sequence[str], prompts: Sequence[Prompt], group: Sequence[int],
    member: Sequence[int], told: list[Told],
) -> Rollouts:  # fmt: skip
    """One row of each stretch, B rows of every part in the same order, to B rows.

    kinds  of action, of each stretch, as in `mmrl.batch.KINDS`
    prompts, group, member, told  B, of each row
    """
    first, device = parts[0], parts[0].mask.device
    masks = [part.mask.to(device) for part in parts]
    mask = torch.cat(masks, 1)

    def constant(values: Sequence[int]) -> Tensor:
        return torch.cat([torch.full(m.shape, v, device=device) for m, v in zip(masks, values, strict=True)], 1)

    stretch = constant(range(1, len(parts) + 1))
    replay = {f"{n}|{name}": value for n, part in enumerate(parts) for name, value in _kept(part).items()}
    shown = first.replay.get("shown", torch.zeros(len(first), dtype=torch.bool, device=device))
    return Rollouts(
        prompts=[replace(prompt) for prompt in prompts],
        encoded=[Entries(list(each)) for each in zip(*(_encoded(part) for part in parts), strict=True)],
        prompt=torch.arange(len(prompts), device=device),
        group=torch.tensor(group, device=device), member=torch.tensor(member, device=device),
        actions=torch.cat([part.actions.to(device) for part in parts], 1), mask=mask,
        old_log_probs=torch.cat([part.old_log_probs.to(device) for part in parts], 1),
        outputs=list(told), length=mask.sum(1),
        finish=[TRUNCATED if TRUNCATED in each else each[0] for each in zip(*(p.finish for p in parts), strict=True)],
        extent=torch.full((len(first),), mask.shape[1], device=device),
        columns={
            "kind": constant([KINDS.index(kind) for kind in kinds]),
            "segment": torch.where(mask, stretch - 1, -1),
        },
        replay=replay | {STRETCH: stretch, "shown": shown.bool()},
    )  # fmt: skip


def _kept(part: Rollouts) -> dict[str, Tensor]:
    """All tensors of a part that are not laid side by side."""
    assert part.extent is not None
    columns = {COLUMN + name: value for name, value in part.columns.items()}
    return {"length": part.length, "extent": part.extent, **part.replay, **columns}


def _encoded(part: Rollouts) -> list[Any]:
    return [part.encoded[place] for place in part.prompt.tolist()]


def part_of(
    rollouts: Rollouts, number: int, asked: Sequence[Prompt]
) -> tuple[Rollouts, Callable[[Tensor], Tensor]]:  # fmt: skip
    """The rows as the policy of stretch `number` made them, answering `asked`, a prompt each row; and what puts numbers
    of its actions back into the whole rows."""
    places = Places.of(rollouts.replay[STRETCH], number + 1)
    prefix = f"{number}|"
    kept = {n.removeprefix(prefix): v for n, v in rollouts.replay.items() if n.startswith(prefix)}
    width = places.index.shape[1]  # rows of other widths were padded when they were put together
    columns = {n.removeprefix(COLUMN): v if v.dim() < 2 else v[:, :width] for n, v in kept.items() if COLUMN in n}
    replay = {n: v for n, v in kept.items() if not n.startswith(COLUMN)}
    length, extent = replay.pop("length"), replay.pop("extent")
    numbers = {prompt.id: i for i, prompt in reversed(list(enumerate(asked)))}
    unique = sorted(set(numbers.values()))
    place = [unique.index(numbers[prompt.id]) for prompt in asked]
    entries = [rollouts.encoded[p] for p in rollouts.prompt.tolist()]
    each = torch.arange(len(asked), device=rollouts.mask.device)
    shared = len(unique) < len(asked)
    part = Rollouts(
        prompts=[asked[i] for i in unique],
        encoded=[None if entries[i] is None else entries[i].each[number] for i in unique],
        prompt=torch.tensor(place, device=rollouts.mask.device),
        group=rollouts.group if shared else each, member=rollouts.member if shared else torch.zeros_like(each),
        actions=places.take(rollouts.actions), mask=places.take(rollouts.mask),
        old_log_probs=places.take(rollouts.old_log_probs), outputs=said_in(rollouts, number),
        length=length, finish=rollouts.finish, extent=extent, columns=columns, replay=replay,
    )  # fmt: skip
    return part, places.put


def said_in(rollouts: Rollouts, number: int) -> list[Any]:
    """What each row holds at this stretch."""
    return [told_of(rollouts, row).stretches[number] for row in range(len(rollouts))]


def told_of(rollouts: Rollouts, row: int) -> Told:
    told = rollouts.outputs[row]
    if not isinstance(told, Told):
        raise PolicyError(
            "these rows of a joint policy have no outputs, which say what its second policy was asked: rows that were "
            "loaded from a file cannot be scored again"
        )
    return told
