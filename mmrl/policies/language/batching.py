"""Which rows are scored together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.record import Rollouts

PASS_TOKENS = {"cpu": 4096}
"""Of responses in one pass of an update, by type of device. Of 16 answers of 1,024 tokens all at once kept 1.3 GB for
the backward pass, four at a time a quarter, in the same time."""


def most_tokens(limit: int | Literal["auto"] | None, device: torch.device) -> int | None:
    """What `pass_tokens` comes to on a device."""
    return PASS_TOKENS.get(device.type) if limit == "auto" else limit


def within(rollouts: Rollouts, rows: Tensor, most: int | None) -> list[Tensor]:
    """`rows` in parts whose responses have at most so many tokens, in their order; a longer one goes alone."""
    assert rollouts.extent is not None
    sizes = rollouts.extent.cpu()[rows.cpu()].tolist()
    if most is None or sum(sizes) <= most:
        return [rows]
    parts, taken = [0], 0
    for place, size in enumerate(sizes):
        if taken and taken + size > most:
            parts.append(place)
            taken = 0
        taken += size
    return [rows[start:stop] for start, stop in zip(parts, [*parts[1:], len(sizes)], strict=True)]


def micro_batches(rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
    """At most `size` of `rows` each: rows of one prompt stay together, prompts of like length are neighbours. Rows with
    media in the response come last, apart from the others, which keep the shared-prompt path."""
    assert rollouts.extent is not None and rollouts.media is not None
    shown = torch.tensor([rollouts.media[row] is not None for row in rows.tolist()], dtype=torch.bool)
    if shown.any() and not shown.all():
        plain, others = (rows[kind.to(rows.device)] for kind in (~shown, shown))
        return micro_batches(rollouts, plain, size) + micro_batches(rollouts, others, size)
    prompt, extent = rollouts.prompt.cpu(), rollouts.extent.cpu()
    pieces: dict[int, list[int]] = {}
    for row in sorted(rows.tolist(), key=lambda r: -int(extent[r])):
        pieces.setdefault(int(prompt[row]), []).append(row)

    def tokens(p: int) -> tuple[int, int]:
        return -len(rollouts.encoded[p] or ()), -int(extent[pieces[p]].max())

    batches: list[list[int]] = [[]]
    for p in sorted(pieces, key=tokens):
        for start in range(0, len(pieces[p]), size):
            piece = pieces[p][start : start + size]
            if batches[-1] and len(batches[-1]) + len(piece) > size:
                batches.append([])
            batches[-1] += piece
    return [torch.tensor(batch, device=rows.device) for batch in batches if batch]
