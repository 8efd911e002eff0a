"""Rows that two models read side by side: each token is chosen by what both say of it.

One is the model that trains, which goes on in the fastest way it has; the other, the same model with other weights or
a copy of it, goes on from a cache of its own. `sampling.decode` sees one set of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from mmrl.policies.language.sampling import Recomputed, RepeatedCache, _Rows, begun

Combine = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(logits, those of the other (b, V)) -> (the logits that are drawn from (b, V), {name: (b, ...)} kept of a token)"""


class Beside:
    """weights  `with weights() as module`: the other model, for each of its steps"""

    def __init__(self, weights: Callable[[], AbstractContextManager[Any]], combine: Combine, *begin: Any):
        """begin: what `sampling.begun` is given"""
        self.weights, self.combine = weights, combine
        model, contexts, context = begin[:3]
        self.own = begun(*begin)
        with weights() as module:
            kind = RepeatedCache if model.repeats_prefixes else Recomputed
            self.other: _Rows = kind(module, contexts, context)
        self.count, self.told = len(context), []  # type: tuple[int, list[tuple[Tensor, dict[str, Tensor]]]]
        self._combine()

    @property
    def rows(self) -> Tensor:
        return self.own.rows

    def _combine(self) -> None:
        self.logits, kept = self.combine(self.own.logits, self.other.logits)
        self.told.append((self.rows, kept))

    def keep(self, chosen: Tensor) -> None:
        self.own.keep(chosen)
        self.other.keep(chosen)

    def advance(self, tokens: Tensor) -> None:
        self.own.advance(tokens)
        with self.weights() as module:
            self.other.model = module
            self.other.advance(tokens)
        self._combine()

    def kept(self, steps: int) -> dict[str, Tensor]:
        """{name: (B, steps, ...)} of every token, 0 where a row had ended."""
        found: dict[str, Tensor] = {}
        for name, example in self.told[0][1].items():
            found[name] = example.new_zeros(self.count, steps, *example.shape[1:])
            for step, (rows, values) in enumerate(self.told):
                found[name][rows, step] = values[name]
        return found
