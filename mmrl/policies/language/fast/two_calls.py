"""Scoring in two calls: a prompt runs once, its responses go on from its cache.

The first call fills the cache, `reorder_cache` gives every response a row of it, the second call runs all response
tokens. No attention of our own takes part, so this is exact for every kind of layer that can decode: sliding, chunked,
soft-capped, shared keys, cross-attention, linear and convolutional ones. Gradients flow through the cache. It saves
what plain rows compute G times, but keeps G copies of the prompt's keys; where the packed row is exact, it is faster.
transformers drops the cache under gradient checkpointing: there the packed row or plain rows take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.language.encoded import Encoded, model_positions, to_device
from mmrl.policies.language.encoding import collate
from mmrl.policies.language.families.default import Family


@dataclass
class TwoCalls:
    """Rows to score from their prompts' cache.

    prompts    inputs of U prompts, left padded
    row        (B,) prompt of each row
    responses  inputs of the response tokens (B, T); the attention mask covers prompt and response
    """

    prompts: dict[str, Any]
    row: Tensor
    responses: dict[str, Any]
    has_media: bool

    def states(self, module: Any, mask: Tensor) -> Tensor:
        cache = module.family.cache()
        last = module.states(self.prompts, cache, idle=not self.has_media)[:, -1]
        cache.reorder_cache(self.row)
        if self.responses["input_ids"].shape[1] == 1:
            return last[self.row][:, None][mask]
        rest = module.states(self.responses, cache)
        return torch.cat([last[self.row][:, None], rest[:, :-1]], dim=1)[mask]


def lay_out(
    entries: Sequence[Encoded],
    prompt: Tensor,
    actions: Tensor,
    lengths: Tensor,
    device: torch.device,
    family: Family,
) -> TwoCalls:
    """entries: P prompts, of which only those that rows use run; prompt (B,) which of them a row answers; actions
    (B, T), lengths (B,)."""
    used, row = torch.unique(prompt.cpu(), return_inverse=True)
    shown = [entries[p] for p in used.tolist()]
    prompts = collate(shown, None, None, device, family)
    steps = actions.shape[1]
    real = torch.arange(steps) < lengths.cpu()[:, None]
    start = torch.tensor([e.next_position for e in shown])[row]
    positions = (start[:, None] + torch.arange(steps)).to(shown[0].positions)
    names = [name for name in prompts if any(name in e.aligned for e in shown)]
    aligned = {n: torch.stack([_appended(shown[r], n, steps, prompts[n]) for r in row.tolist()]) for n in names}
    responses = {
        "input_ids": actions.cpu() * real,
        "attention_mask": torch.cat([prompts["attention_mask"].cpu()[row], real.long()], dim=1),
        "position_ids": model_positions(positions.expand(len(shown[0].positions), -1, -1)),
    } | aligned
    has_media = any(e.media for e in shown)
    return TwoCalls(prompts, row.to(device), to_device(responses, device), has_media)


def _appended(entry: Encoded, name: str, count: int, like: Tensor) -> Tensor:
    if name in entry.aligned:
        return entry.appended(name, count)
    return torch.zeros(count, *like.shape[2:], dtype=like.dtype)
