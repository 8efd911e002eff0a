"""Which rows share a micro-batch: whole trees, since the steps that they share are scored once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def packed_whole(trees: Sequence[Tensor], size: int) -> list[Tensor]:
    """Rows of whole trees put together up to `size` rows; a larger tree is by itself."""
    parts: list[list[Tensor]] = []
    for tree in trees:
        if parts and sum(map(len, parts[-1])) + len(tree) <= size:
            parts[-1].append(tree)
        else:
            parts.append([tree])
    return [torch.cat(part) for part in parts]
