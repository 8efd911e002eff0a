"""Which rows are scored together."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.record import Rollouts


def micro_batches(rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
    """At most `size` of `rows` each: rows of one prompt stay together, prompts of like length are neighbours."""
    prompt, length = rollouts.prompt.cpu(), rollouts.length.cpu()
    pieces: dict[int, list[int]] = {}
    for row in sorted(rows.tolist(), key=lambda r: -int(length[r])):
        pieces.setdefault(int(prompt[row]), []).append(row)

    def tokens(p: int) -> tuple[int, int]:
        return -len(rollouts.encoded[p] or ()), -int(length[pieces[p]].max())

    batches: list[list[int]] = [[]]
    for p in sorted(pieces, key=tokens):
        for start in range(0, len(pieces[p]), size):
            piece = pieces[p][start : start + size]
            if batches[-1] and len(batches[-1]) + len(piece) > size:
                batches.append([])
            batches[-1] += piece
    return [torch.tensor(batch, device=rows.device) for batch in batches if batch]
