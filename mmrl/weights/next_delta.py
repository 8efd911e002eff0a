"""NExt: a small network learns how the update of each matrix goes on, and jumps ahead."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.tools import tool

WIDTH = 256
Place = tuple[str, str]
"""A tensor's name, and which component of it: "u", "s", "v", or "raw" of a tensor of one dimension."""


def components(delta: Tensor) -> dict[str, Tensor]:
    """The strongest rank-1 part of a matrix, `u (m,)`, `s (1,)`, `v (n,)`; of a vector, `raw (n,)` itself.

    More than two dimensions are read as (first, rest). A singular pair has no sign of its own: the largest entry of u
    is made positive, so that checkpoints can be compared, which the release leaves to chance.
    """
    if delta.dim() < 2:
        return {"raw": delta.flatten()}
    u, s, vh = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    sign = torch.sign(u[u[:, 0].abs().argmax(), 0])
    return {"u": u[:, 0] * sign, "s": s[:1], "v": vh[0] * sign}


def assembled(parts: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """The delta of predicted components: u and v made of unit length again, s as it was predicted."""
    if "raw" in parts:
        return parts["raw"].reshape(shape)
    u, v = (parts[name] / parts[name].norm().clamp(min=1e-12) for name in ("u", "v"))
    return (parts["s"] * torch.outer(u, v)).reshape(shape)


def _chain(inside: int, outside: int) -> nn.Sequential:
    """inside -> 256 -> inside -> ReLU -> 256 -> outside, as the release has it: two linear maps without a bend."""
    return nn.Sequential(
        nn.Linear(inside, WIDTH), nn.Linear(WIDTH, inside), nn.ReLU(), nn.Linear(inside, WIDTH),
        nn.Linear(WIDTH, outside),
    )  # fmt: skip


class Predictor(nn.Module):
    """Vectors of one length: what they were since the start, and since the checkpoint before, to what comes."""

    def __init__(self, length: int):
        super().__init__()
        self.since_start, self.since_last = _chain(length, length), _chain(length, length)
        self.both = _chain(2 * length, length)

    def forward(self, since_start: Tensor, since_last: Tensor) -> Tensor:
        """(N, n) each -> (N, n)"""
        return self.both(torch.cat([self.since_start(since_start), self.since_last(since_last)], dim=-1))


def _stacked(deltas: Mapping[str, Tensor]) -> dict[tuple[str, int], tuple[list[Place], Tensor]]:
    """{(kind, length): (places, vectors (N, n))} of the components of all tensors."""
    found: dict[tuple[str, int], list[tuple[Place, Tensor]]] = defaultdict(list)
    for name, delta in deltas.items():
        for kind, vector in components(delta.float()).items():
            found[kind, len(vector)].append(((name, kind), vector))
    return {k: ([p for p, _ in v], torch.stack([x for _, x in v])) for k, v in found.items()}


def fitted(
    examples: list[tuple[Tensor, Tensor, Tensor]], length: int, *, epochs: int, learning_rate: float
) -> Predictor:
    """A predictor of (since_start, since_last, target), each (N, n), one a checkpoint. The loss is the mean over
    checkpoints of the summed absolute error; AdamW, the rate falls along a cosine to a tenth."""
    predictor = Predictor(length)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        rate = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        optimizer.zero_grad()
        for start, last, target in examples:
            ((predictor(start, last) - target).abs().sum() / len(examples)).backward()
        optimizer.step()
    return predictor


@tool(
    "next",
    command="mmrl extrapolate RUN FOLDER --method next --ahead 5 --scale 1.0",
    paper="NExt: non-linear low-rank extrapolation, arXiv 2604.11446; code RUCAIBox/NExt",
    formula="(u, s, v) of theta_t - theta_0 and of theta_t - theta_(t-1), by f_n each, to (u, s, v) of theta_(t+K) - "
    "theta_t, L1; theta = theta_T + c s u v^T",
    confidence="verified",
)
def predicted(
    trajectory: Mapping[str, Tensor], ahead: int, *, epochs: int = 1000, learning_rate: float = 2e-5, seed: int = 0
) -> dict[str, Tensor]:
    """Learns from early checkpoints how the rank-1 part of each update goes on, and predicts the next one.

    trajectory  {name: (K + 1, ...) weights at the start and at K checkpoints, equally far apart}
    ahead       checkpoints that one prediction leaps over; the release leaps 5, of 10 steps each
    Returns {name: the delta that is added to the last checkpoint}, the caller's c times. Tensors of equal length share
    a predictor. Source: RUCAIBox/NExt, src/train.py, extrapolate.py, compute_target_delta.py.
    """
    count = {len(tensors) - 1 for tensors in trajectory.values()}
    if len(count) != 1:
        raise ConfigError(f"next: tensors of {sorted(count)} checkpoints; expected equally many of each")
    (last,) = count
    if not 0 < ahead < last:
        raise ConfigError(f"next: a leap of {ahead} checkpoints needs at least {ahead + 1} of them to learn from, got "
                          f"{last}; save more often, keep more (training.keep_checkpoints), or leap less")  # fmt: skip

    def delta(after: int, before: int) -> dict:
        return _stacked({name: t[after].float() - t[before].float() for name, t in trajectory.items()})

    inputs = {t: (delta(t, 0), delta(t, t - 1)) for t in [*range(1, last - ahead + 1), last]}
    targets = {t: delta(t + ahead, t) for t in range(1, last - ahead + 1)}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key, (places, start) in inputs[last][0].items():
            examples = [(inputs[t][0][key][1], inputs[t][1][key][1], targets[t][key][1]) for t in targets]
            predictor = fitted(examples, key[1], epochs=epochs, learning_rate=learning_rate)
            with torch.no_grad():
                vectors = predictor(start, inputs[last][1][key][1])
            for (name, kind), vector in zip(places, vectors, strict=True):
                parts[name][kind] = vector
    return {name: assembled(parts[name], t[0].shape).to(t) for name, t in trajectory.items()}
