"""A prompt's way through the model, once for the rollout and for the update after it.

An update on fresh rollouts scores them with the weights that wrote them. Its forward pass over prompt and media is
then the one that filled the cache for decoding: kept with its graph, the update runs response tokens alone, and its
backward pass goes on through keys and values into prompt and vision tower. The rollout's log-probs and the update's
stay what they were; a forward pass over every prompt and picture is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrl.policies.sharding import is_sharded

if TYPE_CHECKING:
    from mmrl.policies.language.encoded import Encoded


Versions = list[tuple[int, int]]


@dataclass(eq=False)
class Prefill:
    """What the decoder made of one prompt of P tokens.

    keys, values  of each layer (1, H_kv, P, d)
    last          (1, hidden) state of the last token, before the output head
    """

    keys: list[Tensor]
    values: list[Tensor]
    last: Tensor

    def __len__(self) -> int:
        return self.keys[0].shape[2]


def refusal(module: Any, checkpointing: bool) -> str | None:
    """Why an update's pass over prompts of this `ScoredLanguageModel` cannot be the rollout's, or None."""
    if checkpointing:
        return "gradient checkpointing computes prompts again on purpose"
    if not module.shares_prefixes:
        return "prompts are not scored in packed rows of full attention"
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in module.modules()):
        return "dropout draws noise in the update"
    if is_sharded(module):
        return "sharded weights are whole for a while only"
    return None


def split(cache: Any, states: Tensor, lengths: Sequence[int]) -> list[Prefill]:
    """The prompts of a packed row: its key-value cache, its last hidden states (L, hidden), lengths that sum to L."""

    def of_prompts(name: str) -> list[list[Tensor]]:
        layers = [getattr(layer, name).split(list(lengths), dim=2) for layer in cache.layers]
        return [list(parts) for parts in zip(*layers, strict=True)]

    lasts = states[torch.tensor(lengths, device=states.device).cumsum(0) - 1].split(1)
    return [Prefill(*parts) for parts in zip(of_prompts("keys"), of_prompts("values"), lasts, strict=True)]


def stacked(prefills: Sequence[Prefill], config: Any) -> tuple[Any, Tensor]:
    """A key-value cache of U left-padded prompts, without gradient, and where it is real (U, P)."""
    from transformers import DynamicCache

    lengths = torch.tensor([len(p) for p in prefills], device=prefills[0].last.device)
    width = int(lengths.max())

    def rows(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(t.detach(), (0, 0, width - t.shape[2], 0)) for t in parts])

    cache = DynamicCache(config=config)
    for index in range(len(prefills[0].keys)):
        cache.update(rows([p.keys[index] for p in prefills]), rows([p.values[index] for p in prefills]), index)
    return cache, torch.arange(width, device=lengths.device) >= width - lengths[:, None]


PACK = 1024
"""Prompts are prefilled together, in the order they come, until they have so many tokens: short ones by themselves
are slow, and of long ones each should be free to leave the update."""


def packs(prompts: Sequence[Encoded]) -> list[list[Encoded]]:
    """Neighbours to prefill in one row each."""
    rows: list[list[Encoded]] = []
    for prompt in prompts:
        if not rows or sum(map(len, rows[-1])) + len(prompt) > PACK:
            rows.append([])
        rows[-1].append(prompt)
    return rows


class KeptPrefills:
    """Prompts on their way from a rollout to the update after it.

    They are kept where the last batch's first update scored everything in one pass: that pass held the graphs of all
    its prompts anyway. Several smaller passes would each find the graphs of all the others in memory. Where a batch
    serves several updates the weights have moved before the second, so those of the first update's prompts are kept.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._prefills: WeakKeyDictionary[Encoded, tuple[object, Prefill]] = WeakKeyDictionary()
        self._weights: Versions | None = None
        self._before = 0
        self._forget()

    def __len__(self) -> int:
        return len(self._prefills)

    def _forget(self) -> None:
        """passes with the rollout's weights; updates of the first way through the batch, and what they have seen."""
        self._passes, self._updates = 0, 0
        self._latest: Versions | None = None
        self._seen: WeakSet[Encoded] = WeakSet()

    def begin(self) -> int:
        """A rollout to train on begins: the updates its prompts will be split over, 0 if none is worth keeping."""
        weights = self._versions()
        if weights != self._weights:
            self._before, self._weights = self.updates, weights
            self._forget()
            self._prefills.clear()
        return self._before

    @property
    def updates(self) -> int:
        """Those that the last batch served, 0 if the first took several passes; what a resumed run has to know."""
        moved = self._weights is not None and self._weights != self._versions()
        return self._before if not moved else self._updates if self._passes == 1 else 0

    @updates.setter
    def updates(self, value: int) -> None:
        self._before = value

    def _count(self, prompts: Sequence[Encoded]) -> None:
        versions = self._versions()
        self._passes += versions == self._weights
        if versions != self._latest and not any(prompt in self._seen for prompt in prompts):
            self._updates, self._latest = self._updates + 1, versions
        self._seen.update(prompts)

    def keep(self, prompts: Sequence[Encoded], prefills: Sequence[Prefill]) -> None:
        """Prompts that were prefilled in one row."""
        row = object()
        for prompt, prefill in zip(prompts, prefills, strict=True):
            self._prefills[prompt] = row, prefill

    def take(self, prompts: Sequence[Encoded]) -> list[Prefill | None]:
        """The prefills of a pass with gradient: as long as the weights are those that made them, and each row once,
        since its graph serves one backward pass."""
        if self._weights is not None:
            self._count(prompts)
        if self._prefills and self._weights != self._versions():
            self._prefills.clear()
        taken = [self._prefills.get(prompt) for prompt in prompts]
        used = {id(row) for row, _ in filter(None, taken)}
        for prompt, (row, _) in list(self._prefills.items()):
            if id(row) in used:
                del self._prefills[prompt]
        return [None if found is None else found[1] for found in taken]

    def _versions(self) -> Versions:
        """Changes with every write to a weight, by an optimizer or anyone else."""
        return [(id(p), p._version) for p in self._module.parameters()]
