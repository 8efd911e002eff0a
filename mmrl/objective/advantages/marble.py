"""MARBLE: several rewards, one gradient each, combined so that none is traded away.

    g_k = gradient of the loss under the advantages of reward k,  u_k = g_k / |g_k|
    alpha = argmin over the simplex of |sum_k alpha_k u_k|^2,     d = mean_k |g_k| sum_k alpha_k u_k

The smallest convex combination has the same dot product with every unit gradient that takes part, and no smaller one
with the others: a step along it harms no reward. Solving takes a backward pass for each reward, so it is done every
`every` optimizer steps; between them one pass trains on A = sum_k abar_k A_k, abar the moving average of alpha. For a
loss that is affine in the advantage (DiffusionNFT, where no advantage is clamped) that is sum_k abar_k g_k exactly.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.objective.groups import degenerate, group_normalized
from mmrl.objective.numerics import whole_rewards
from mmrl.record import Batch
from mmrl.stages import FLOW, stage

MOST_REWARDS = 10
"""All 2^K - 1 sets of rewards are tried, which is exact and, for so few, at once."""
NOTHING = 1e-12
ROUNDING = 1e-9


def least_norm(gram: Tensor) -> Tensor:
    """(K,) float64 on the simplex: argmin of a^T G a, for `gram (K, K)` of dot products.

    On the set of rewards that take part G a is constant, so for each set the candidate solves [[G, 1], [1^T, 0]] (a, c)
    = (0, 1), by least squares where gradients are opposed or equal and G has no inverse; the best one without negative
    entries is the solution. Rewards whose gradient is zero take no part.
    """
    gram = gram.double()
    alive = [k for k in range(len(gram)) if float(gram[k, k]) > NOTHING]
    best, least = torch.zeros(len(gram), dtype=torch.float64), float("inf")
    for size in range(1, len(alive) + 1):
        for part in combinations(alive, size):
            rows = torch.tensor(part)
            bordered = torch.ones(size + 1, size + 1, dtype=torch.float64)
            bordered[:size, :size], bordered[size, size] = gram[rows][:, rows], 0.0
            wanted = torch.zeros(size + 1, 1, dtype=torch.float64)
            wanted[size] = 1.0
            a = torch.linalg.lstsq(bordered, wanted, driver="gelsd").solution[:size, 0]
            if not bool(torch.isfinite(a).all()) or float(a.min()) < -ROUNDING or float(a.sum()) <= 0:
                continue
            a = a.clamp(min=0) / a.clamp(min=0).sum()
            value = float(a @ gram[rows][:, rows] @ a)
            if value <= least + NOTHING:  # of equals the larger set, in which equal rewards share
                best, least = torch.zeros_like(best).index_copy(0, rows, a), value
    return best


@stage(
    "advantage",
    paper="MARBLE: multi-aspect reward balance for diffusion RL, arXiv 2605.06507",
    formula="A = sum_k abar_k (R_k - mean_g) / (std_g + eps); every N steps abar <- rho abar + (1 - rho) alpha, "
    "alpha the least-norm convex combination of the rewards' unit gradients, which that step takes",
    confidence="partly",
    scope="batch",
    relative=True,
    needs=("components",),
    modalities=FLOW,
)
class marble:
    """Each reward normalised in its group and weighed by how its gradient meets the others'. Returns (B,).

    rewards  components that take part; null: the run's rewards, or where there is one, all that it tells
    every    optimizer steps between two solves: N; the authors find solving every step worse than 10
    memory   rho, of the moving average of the weights
    eps, ddof  of the normalisation in the group

    The trainer asks `due` before an optimizer step, and for those that are trains on `split` one by one and combines.
    Credit functions are not applied to the parts, so it wants none. Source: the paper's text; no training code had
    been published. Where a reward has no signal in any group its weight in that solve is 0, and the average keeps it
    alive.
    """

    def __init__(
        self, *, rewards: list[str] | None = None, every: int = 10, memory: float = 0.7, eps: float = 1e-4,
        ddof: int = 0,
    ):  # fmt: skip
        if every < 1 or not 0 <= memory < 1:
            raise ConfigError(f"marble: every={every}, memory={memory:g}; expected every >= 1 and 0 <= memory < 1")
        self.rewards, self.every, self.memory, self.eps, self.ddof = rewards, every, memory, eps, ddof
        self.weights: dict[str, float] = {}

    def __call__(self, batch: Batch) -> Tensor:
        parts = self.split(batch)
        if not self.weights:
            self.weights = dict.fromkeys(parts, 1 / len(parts))
        total = torch.zeros_like(batch.reward)
        for name, advantage in parts.items():
            total = total + self.weights[name] * advantage
        return total

    def split(self, batch: Batch) -> dict[str, Tensor]:
        """{reward: its advantages (B,)}; 0 where a group has no signal or the reward is NaN."""
        names = list(self.weights) or self.rewards or whole_rewards(batch.components)
        for name in names:
            if name not in batch.components:
                raise ConfigError(f"marble: {unknown('reward component', name, batch.components)}")
        if not 2 <= len(names) <= MOST_REWARDS:
            raise ConfigError(
                f"marble balances 2 to {MOST_REWARDS} rewards, got {len(names)} ({', '.join(names)}); name them with "
                "objective.advantage.rewards=[...]"
            )
        return {name: self._normalised(batch.components[name], batch) for name in names}

    def _normalised(self, values: Tensor, batch: Batch) -> Tensor:
        flat = degenerate(values, batch.group, batch.counted)
        found = group_normalized(values, batch.group, batch.counted, self.eps, self.ddof)
        return torch.where(flat | torch.isnan(found), torch.zeros_like(found), found).to(batch.reward)

    def due(self, update: int) -> bool:
        """Whether optimizer step `update` (from 0) combines gradients."""
        return update % self.every == 0

    def combine(self, gram: Tensor) -> tuple[Tensor, float]:
        """(K,) what each reward's gradient is multiplied by, from their dot products `gram (K, K)`, in the order of
        `split`; and the largest cosine conflict, the least cosine of a pair. Remembers the weights."""
        norms = gram.double().diagonal().clamp(min=0).sqrt()
        alive = norms > NOTHING
        unit = gram.double() / torch.where(alive, norms, 1.0)[:, None] / torch.where(alive, norms, 1.0)[None, :]
        alpha = least_norm(unit * alive[:, None] * alive[None, :])
        for name, each in zip(self.weights, alpha.tolist(), strict=True):
            self.weights[name] = self.memory * self.weights[name] + (1 - self.memory) * each
        mean = norms.mean() if bool(alive.any()) else norms.new_zeros(())
        pairs = [float(unit[i, j]) for i, j in combinations(alive.nonzero().squeeze(1).tolist(), 2)]
        return torch.where(alive, alpha * mean / torch.where(alive, norms, 1.0), 0.0), min(pairs, default=1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = dict(state["weights"])
