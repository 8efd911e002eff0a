"""Evolution strategies: a mean that moves towards the better of the points drawn around it. No gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError


def centred_ranks(values: Tensor) -> Tensor:
    """(N,) ranks from -1/2 to 1/2, equal values at their mean rank; their sum is 0. A group advantage of candidates:
    no scale of the values matters. NaN, which no candidate may have, is refused."""
    if bool(values.isnan().any()):
        raise ConfigError(f"centred ranks of {int(values.isnan().sum())} unscored candidates")
    below = (values[:, None] > values[None, :]).double().sum(1)
    equal = (values[:, None] == values[None, :]).double().sum(1)
    return (below + (equal - 1) / 2) / max(len(values) - 1, 1) - 0.5


@dataclass
class Search:
    """CMA-ES with a diagonal covariance (separable CMA-ES), for any number of dimensions.

    mean   (n,) where it stands
    sigma  the step, of which coordinate i takes `spread[i]`
    size   candidates of a generation; the better half of them is followed

    Source: Ros and Hansen 2008 for the separable form and its learning rates, Hansen's tutorial (arXiv 1604.00772) for
    paths and step size.
    """

    mean: Tensor
    sigma: float
    size: int = 24
    generation: int = 0
    spread: Tensor = field(default_factory=lambda: torch.zeros(0))
    path: Tensor = field(default_factory=lambda: torch.zeros(0))
    step_path: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        if self.size < 4 or self.sigma <= 0:
            raise ConfigError(f"search: size={self.size}, sigma={self.sigma}; expected 4 or more, and above 0")
        self.mean = self.mean.double()
        if not len(self.spread):
            self.spread = torch.ones_like(self.mean)
            self.path, self.step_path = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        n, weights = len(self.mean), self.weights
        m = 1 / float((weights**2).sum())
        self.effective = m
        self.c_sigma = (m + 2) / (n + m + 5)
        self.damping = 1 + 2 * max(0.0, ((m - 1) / (n + 1)) ** 0.5 - 1) + self.c_sigma
        self.c_path = (4 + m / n) / (n + 4 + 2 * m / n)
        faster = (n + 2) / 3  # a diagonal has fewer numbers to learn
        self.c_one = min(1.0, faster * 2 / ((n + 1.3) ** 2 + m))
        self.c_mu = min(1 - self.c_one, faster * 2 * (m - 2 + 1 / m) / ((n + 2) ** 2 + m))
        self.expected = n**0.5 * (1 - 1 / (4 * n) + 1 / (21 * n**2))

    @property
    def weights(self) -> Tensor:
        """(size // 2,) of the better half, falling with the rank; their sum is 1."""
        half = self.size // 2
        raw = torch.log(torch.tensor(half + 0.5, dtype=torch.float64)) - torch.arange(1, half + 1).double().log()
        return raw / raw.sum()

    def ask(self, generator: torch.Generator) -> Tensor:
        """(size, n) candidates."""
        noise = torch.randn(self.size, len(self.mean), dtype=torch.float64, generator=generator)
        return self.mean + self.sigma * self.spread.sqrt() * noise

    def tell(self, candidates: Tensor, values: Tensor) -> None:
        """What the candidates of `ask` are worth (size,): more is better."""
        order = centred_ranks(values).argsort(descending=True, stable=True)[: self.size // 2]
        moves = (candidates.double()[order] - self.mean) / self.sigma
        move = self.weights @ moves
        self.generation += 1
        self.mean = self.mean + self.sigma * move
        c, m = self.c_sigma, self.effective
        self.step_path = (1 - c) * self.step_path + (c * (2 - c) * m) ** 0.5 * move / self.spread.sqrt()
        length = float(self.step_path.norm())
        calm = length / (1 - (1 - c) ** (2 * self.generation)) ** 0.5 < (1.4 + 2 / (len(self.mean) + 1)) * self.expected
        self.path = (1 - self.c_path) * self.path + calm * (self.c_path * (2 - self.c_path) * m) ** 0.5 * move
        kept = (1 - self.c_one - self.c_mu) * self.spread
        self.spread = kept + self.c_one * self.path**2 + self.c_mu * (self.weights @ moves**2)
        self.sigma *= float(torch.exp(torch.tensor(c / self.damping * (length / self.expected - 1))))

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).tolist() for name in ("mean", "spread", "path", "step_path")}
        return tensors | {"sigma": self.sigma, "size": self.size, "generation": self.generation}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Search:
        """What `state_dict` gave."""
        tensors = {n: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for n, v in state.items()}
        return cls(**tensors)
