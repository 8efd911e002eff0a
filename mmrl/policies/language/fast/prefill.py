"""A prompt's way through the model, once for the rollout and for the update after it.

An update on fresh rollouts scores them with the weights that wrote them. Its forward pass over prompt and media is
then the one that filled the cache for decoding: kept with its graph, the update runs response tokens alone, and its
backward pass goes on through keys and values into prompt and vision tower. The rollout's log-probs and the update's
stay what they were; a forward pass over every prompt and picture is saved.

An update of long responses goes through them in several passes, of which each holds activations of its own. All but
the last read copies of keys and values without a graph, where their gradients add up (`Lent`); the last one's backward
pass takes the sums along into the graph, which serves one backward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrl.errors import PolicyError
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


class Lent:
    """Prompts that were prefilled in one row, and so have one graph."""

    def __init__(self, prefills: Sequence[Prefill]):
        self._prefills = list(prefills)
        self._copies: list[Prefill] | None = None

    def once(self) -> list[Prefill]:
        """Without their graph: gradients stay in these."""
        if self._copies is None:
            self._copies = _like(self._prefills, [t.detach().requires_grad_() for t in _tensors(self._prefills)])
        return self._copies

    def last(self) -> list[Prefill]:
        """With it, and with what the passes before made of gradients."""
        if self._copies is None:
            return self._prefills
        sums, self._copies = [t.grad for t in _tensors(self._copies)], None
        return _like(self._prefills, _WithSums.apply(sums, *_tensors(self._prefills)))

    @property
    def open(self) -> bool:
        """Whether there are gradients that no pass has taken along."""
        return self._copies is not None


class _WithSums(torch.autograd.Function):
    """The same tensors; their gradients grow by `sums`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.sums = arguments[0]
        return tuple(t.view_as(t) for t in arguments[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        pairs = zip(gradients, ctx.sums, strict=True)
        return None, *(one if other is None else other if one is None else one + other for one, other in pairs)


def _tensors(prefills: Sequence[Prefill]) -> list[Tensor]:
    return [t for p in prefills for t in (*p.keys, *p.values, p.last)]


def _like(prefills: Sequence[Prefill], tensors: Sequence[Tensor]) -> list[Prefill]:
    """`tensors`, in the order of `_tensors`, as prefills."""
    given, depth = iter(tensors), len(prefills[0].keys)
    return [
        Prefill([next(given) for _ in range(depth)], [next(given) for _ in range(depth)], next(given)) for _ in prefills
    ]


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
        self._prefills: WeakKeyDictionary[Encoded, tuple[Lent, int]] = WeakKeyDictionary()
        self._coming: Counter[Lent] = Counter()
        self._weights: Versions | None = None
        self._before = 0
        self._forget()

    def __len__(self) -> int:
        return len(self._prefills)

    def _forget(self) -> None:
        """passes with the rollout's weights; updates of the first way through the batch, and what they have seen."""
        self._passes, self._updates, self._counted = 0, 0, 0
        self._latest: Versions | None = None
        self._seen: WeakSet[Encoded] = WeakSet()

    def begin(self) -> int:
        """A rollout to train on begins: the updates its prompts will be split over, 0 if none is worth keeping."""
        weights = self._versions()
        if weights != self._weights:
            self._before, self._weights = self.updates, weights
            self._forget()
            self._drop()
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
        self._counted = max(self._counted - 1, 0)
        self._passes += versions == self._weights and not self._counted
        if versions != self._latest and not any(prompt in self._seen for prompt in prompts):
            self._updates, self._latest = self._updates + 1, versions
        self._seen.update(prompts)

    def keep(self, prompts: Sequence[Encoded], prefills: Sequence[Prefill]) -> None:
        """Prompts that were prefilled in one row."""
        row = Lent(prefills)
        for place, prompt in enumerate(prompts):
            self._prefills[prompt] = row, place

    def expect(self, passes: Sequence[Sequence[Encoded]]) -> None:
        """The prompts of the passes that come next, each with its backward pass. They count as one."""
        self._counted = len(passes)
        self._coming.clear()
        for prompts in passes:
            self._coming.update({self._prefills[p][0] for p in prompts if p in self._prefills})

    def take(self, prompts: Sequence[Encoded]) -> list[Prefill | None]:
        """The prefills of a pass with gradient: as long as the weights are those that made them, and each row once,
        since its graph serves one backward pass, unless more passes are expected to read it."""
        if self._weights is not None:
            self._count(prompts)
        if self._prefills and self._weights != self._versions():
            self._drop()
        taken = [self._prefills.get(prompt) for prompt in prompts]
        used = {row: self._coming[row] > 1 for row, _ in filter(None, taken)}
        self._coming.subtract(used.keys())
        given = {row: row.once() if again else row.last() for row, again in used.items()}
        for prompt, (row, _) in list(self._prefills.items()):
            if not used.get(row, True):
                del self._prefills[prompt]
        return [None if found is None else given[found[0]][found[1]] for found in taken]

    def _drop(self) -> None:
        lost = any(row.open for row, _ in self._prefills.values())
        self._prefills.clear()
        self._coming.clear()
        if lost:
            raise PolicyError("an update ended before its last pass: gradients of prompts would be missing")

    def _versions(self) -> Versions:
        """Changes with every write to a weight, by an optimizer or anyone else."""
        return [(id(p), p._version) for p in self._module.parameters()]
