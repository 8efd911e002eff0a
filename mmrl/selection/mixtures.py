"""How much of which data: MoDoMoDo's mixture, and RECAP's share of general data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt
from mmrl.selection.prompts import Shuffled, column
from mmrl.stages import stage


def seed_mixtures(sources: int) -> Tensor:
    """(2K + 1, K) the mixtures to try first: each source alone, all but one, all alike."""
    alone = torch.eye(sources, dtype=torch.float64)
    without = (1 - alone) / max(sources - 1, 1)
    return torch.cat([alone, without, torch.full((1, sources), 1 / sources, dtype=torch.float64)])


def _terms(mixtures: Tensor) -> Tensor:
    """(M, F) of a quadratic in `mixtures (M, K)`: each product once. On the simplex they hold constant and line too."""
    rows, columns = torch.triu_indices(mixtures.shape[1], mixtures.shape[1])
    return mixtures[:, rows] * mixtures[:, columns]


def fit_mixtures(mixtures: Tensor, scores: Tensor, ridge: float = 1e-6) -> Tensor:
    """(F,) the quadratic surrogate of held-out `scores (M,)` of runs on `mixtures (M, K)`, by ridge regression."""
    terms = _terms(mixtures.double())
    gram = terms.T @ terms + ridge * torch.eye(terms.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, terms.T @ scores.double())


def predicted(surrogate: Tensor, mixtures: Tensor) -> Tensor:
    """(M,) the score that the surrogate expects of each mixture."""
    return _terms(mixtures.double()) @ surrogate


def on_simplex(point: Tensor) -> Tensor:
    """(S, K) the nearest shares of 0 or more that add up to 1."""
    ordered = point.sort(dim=-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, point.shape[-1] + 1, dtype=point.dtype)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (point - excess.gather(-1, last)).clamp(min=0)


def best_mixture(surrogate: Tensor, sources: int, *, steps: int = 2000, rate: float = 0.02) -> Tensor:
    """(K,) where the surrogate is largest on the simplex: projected gradient from every seed mixture, the best end."""
    shares = seed_mixtures(sources)
    for _ in range(steps):
        at = shares.clone().requires_grad_()
        (slope,) = torch.autograd.grad(predicted(surrogate, at).sum(), at)
        shares = on_simplex(shares + rate * slope / surrogate.abs().max().clamp(min=1e-12))
    return shares[predicted(surrogate, shares).argmax()]


@stage(
    "prompts",
    "modomodo",
    paper="MoDoMoDo, arXiv 2505.24871",
    formula="source ~ w, then the next prompt of it; w = argmax of a quadratic fitted to runs on seed mixtures",
    confidence="partly",
)
class Mixture:
    """Draws a source for each prompt of a batch, then the next prompt of that source, each shuffled by itself.

    weights  {source: weight}, which need not add up to 1; sources left out are never drawn. None: all alike
    column   of the data set that names a row's source

    How to find the weights: train a short run on each of `seed_mixtures`, give their held-out scores to
    `fit_mixtures`, and take `best_mixture`. Source: arXiv 2505.24871 by secondary notes; the ridge is ours.
    """

    def __init__(self, *, weights: dict[str, float] | None = None, column: str = "source") -> None:
        if weights is not None and not (all(w >= 0 for w in weights.values()) and sum(weights.values()) > 0):
            raise ConfigError(f"prompts 'modomodo': weights {weights}: expected 0 or more, and one above 0")
        self.weights, self.column = weights, column
        self.rows: dict[str, list[int]] = {}
        self.shuffled: dict[str, Shuffled] = {}

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn which row is of which source."""
        self.rows = {}
        for index in range(len(prompts)):
            source = str(column(prompts, index, self.column, "prompts 'modomodo'"))
            self.rows.setdefault(source, []).append(index)
        for source in self.weights or ():
            if source not in self.rows:
                raise ConfigError(f"prompts 'modomodo': weights: {unknown('source', source, self.rows)}")
        self.shuffled = {source: self.shuffled.get(source, Shuffled()) for source in self.rows}

    def select(self, count: int, size: int, key: Key) -> list[int]:
        """`count` dataset indices out of `size`."""
        sources = self._sources(count, key)
        indices = self._of(sources, key)
        for source in sources:
            self.shuffled[source].taken += 1
        return indices

    def coming(self, count: int, size: int, key: Key) -> list[int]:
        return self._of(self._sources(count, key), key)

    def _sources(self, count: int, key: Key) -> list[str]:
        if not self.rows:
            raise ConfigError("prompts 'modomodo' has not met the data set: call `meet(prompts)` first")
        names = sorted(self.rows)
        shares: Mapping[str, float] = self.weights if self.weights is not None else dict.fromkeys(names, 1.0)
        weights = torch.tensor([shares.get(name, 0.0) for name in names], dtype=torch.float64)
        generator = key.at(purpose="modomodo").generator()
        return [names[i] for i in torch.multinomial(weights, count, replacement=True, generator=generator).tolist()]

    def _of(self, sources: list[str], key: Key) -> list[int]:
        """The next rows of each source, in the order asked."""
        ready = {
            source: iter(self.shuffled[source].coming(sources.count(source), len(self.rows[source]), key))
            for source in set(sources)
        }
        return [self.rows[source][next(ready[source])] for source in sources]

    def observe(self, indices: list[int | None], batch: Batch) -> None:
        """A mixture learns nothing from outcomes."""

    def state_dict(self) -> dict[str, Any]:
        return {"taken": {source: shuffled.taken for source, shuffled in self.shuffled.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for source, taken in state["taken"].items():
            self.shuffled.setdefault(source, Shuffled()).taken = taken
