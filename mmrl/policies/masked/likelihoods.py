"""Log-probs of a completion under a masked diffusion language model, by which tokens the model may see.

A model says, in one forward pass, how likely each hidden token is given the visible ones. Every function here turns
a few such passes into the `(B, T)` log-probs that ratios, clips and KL terms read:

    score(visible (B, T) bool, share of the prompt hidden) -> (B, T) log-probs of the true tokens

Random masks come from `noise (B, K, T)`, uniform numbers kept with the rollout: new, old and reference log-probs of
a rollout must use the same masks, else their ratios are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, unknown
from mmrl.policies import likelihood
from mmrl.stages import Need

Score = Callable[[Tensor, float], Tensor]
"""`(visible (B, T) bool, share of prompt tokens hidden) -> log-probs (B, T)` of the true tokens."""


@dataclass(frozen=True)
class Surrogate:
    """One way to score a completion.

    name    as the policy's configuration spells it
    draws   how many uniform rows of noise it reads, K
    passes  forward passes of the model; None: one for each token
    """

    name: str
    function: Callable[..., tuple[Tensor, Tensor]]
    draws: int
    passes: int | None


def one_step(score: Score, mask: Tensor, noise: Tensor, *, prompt_share: float = 0.15) -> tuple[Tensor, Tensor]:
    """diffu-GRPO: everything hidden, one pass. Returns log-probs and which actions they stand for, (B, T) twice.

    prompt_share  of prompt tokens hidden as well, a regulariser

    Cheap and biased. Source: dllm-reasoning/d1.
    """
    return score(torch.zeros_like(mask), prompt_share) * mask, mask


def coupled(score: Score, mask: Tensor, noise: Tensor, *, low: float = 0.2, high: float = 0.8) -> tuple[Tensor, Tensor]:
    """coupled-GRPO: a mask and its complement, so that every token is scored once in context. (B, T) twice.

    low, high  the hidden share of the first mask is drawn between them

    `lp_t = (lp_full + lp_context / p_t) / 2`, p_t the probability of its being hidden. Three passes. The weight
    1 / p_t is in the authors' code; the estimate is not a log-prob. Source: apple/ml-diffucoder, coupled_grpo.py.
    """
    share = low + (high - low) * noise[:, 0, :1]
    hidden = noise[:, 1] < share
    full = score(torch.zeros_like(mask), 0.0)
    context = torch.where(hidden, score(~hidden & mask, 0.0), score(hidden & mask, 0.0))
    return 0.5 * (full + context / torch.where(hidden, share, 1 - share)) * mask, mask


def random_share(score: Score, mask: Tensor, noise: Tensor, *, step: int = 0, steps: int = 1) -> tuple[Tensor, Tensor]:
    """UniGRPO: a random share hidden, and only those tokens scored. (B, T) twice; unscored actions are 0.

    step, steps  inner step of a rollout batch: the first draws its share, the others are spread evenly over (0, 1)

    Pair it with credit `scored_actions`, so that the loss divides by what was scored. Ours: at least one token of a
    completion is hidden. Source: MMaDA's paper from memory; Gen-Verse/dLLM-RL's random masking is the nearest code.
    """
    share = noise[:, 0, :1] if step == 0 else torch.full_like(noise[:, 0, :1], step / max(steps, 1))
    ranked = torch.where(mask, noise[:, 1], 2.0)
    hidden = mask & ((ranked < share) | (ranked == ranked.amin(1, keepdim=True)))
    return score(~hidden & mask, 0.0) * hidden, hidden


def gauss_legendre(points: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the quadrature on (0, 1)."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def hide_share(mask: Tensor, order: Tensor, share: float) -> Tensor:
    """(B, T) bool: the `share` of each row's actions that come first in `order`, at least one."""
    count = (mask.sum(1) * share).round().clamp(min=1)
    rank = torch.where(mask, order, 2.0).argsort(1).argsort(1)
    return mask & (rank < count[:, None])


def quadrature(score: Score, mask: Tensor, noise: Tensor, *, points: int = 3) -> tuple[Tensor, Tensor]:
    """GDPO's ELBO: mask levels at fixed quadrature points, one random mask each. (B, T) twice.

    points  2 or 3 reach what a hundred random levels do; the variance comes from the level, not from the mask

    The row sum is the ELBO, so ratio `full_sequence` compares ELBOs. A fixed count of tokens is hidden at each level.
    Source: arXiv 2510.08554 by way of notes on the full text, and NeMo RL's `SdmcElboEstimator`.
    """
    total = torch.zeros_like(noise[:, 0])
    for k, (level, weight) in enumerate(zip(*gauss_legendre(points), strict=True)):
        hidden = hide_share(mask, noise[:, k], level)
        total = total + weight / level * score(~hidden & mask, 0.0) * hidden
    return total, mask


def monte_carlo(score: Score, mask: Tensor, noise: Tensor, *, samples: int = 16) -> tuple[Tensor, Tensor]:
    """BGPO's draws: the ELBO of each of J random mask levels. Returns (B, J) twice; the action axis is the draws.

    samples  J; more means less bias and costs time, not memory, since every term backpropagates alone

    Pair it with trust region `bgpo` and `sequence_mean`. Source: arXiv 2510.11683, equations 4 and 5.
    """
    columns = []
    for j in range(samples):
        level = noise[:, j, :1].clamp(min=1e-3)
        ranked = torch.where(mask, noise[:, samples + j], 2.0)
        hidden = mask & (ranked < level)
        columns.append((score(~hidden & mask, 0.0) * hidden / level).sum(1))
    values = torch.stack(columns, dim=1)
    return values, mask.any(1, keepdim=True).expand(values.shape)


def left_to_right(score: Score, mask: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """JustGRPO: token t given the tokens before it, everything later hidden; T passes. (B, T) twice.

    Exact for a model that generates from left to right. Source: LeapLabTHU/JustGRPO, grpo.py.
    """
    before = torch.arange(mask.shape[1], device=mask.device)
    columns = []
    for t in range(mask.shape[1]):
        columns.append(score((before < t)[None, :] & mask, 0.0)[:, t])
    return torch.stack(columns, dim=1) * mask, mask


def surrogate(name: str, *, points: int = 3, samples: int = 16) -> Surrogate:
    """A surrogate by name, with the noise and the passes it needs."""
    known = {
        "one_step": Surrogate(name, one_step, 0, 1),
        "coupled": Surrogate(name, coupled, 2, 3),
        "random_share": Surrogate(name, random_share, 2, 1),
        "quadrature": Surrogate(name, lambda s, m, n: quadrature(s, m, n, points=points), points, points),
        "monte_carlo": Surrogate(name, lambda s, m, n: monte_carlo(s, m, n, samples=samples), 2 * samples, samples),
        "left_to_right": Surrogate(name, left_to_right, 0, None),
    }
    if name not in known:
        raise ConfigError(unknown("likelihood surrogate", name, known))
    return known[name]


@dataclass
class Hidden:
    """What is scored.

    mask   (B, T) bool: the tokens of each completion
    noise  (B, K, T) uniform numbers, of which random masks are made
    """

    mask: Tensor
    noise: Tensor


class Masked(likelihood.Likelihood):
    """`masked`: tokens hidden from the model, as `policy.surrogate` says. One of your own is a subclass with a `score`.

    draws      K rows of noise that it reads
    over_draws  T is the axis of `policy.samples` draws, not that of tokens
    """

    kept = frozenset({"scored"})
    draws: int
    over_draws: bool

    def __init__(self, config: Any):
        super().__init__(config)
        self.chosen = surrogate(config.surrogate, points=config.points, samples=config.samples)
        self.draws, self.over_draws = self.chosen.draws, config.surrogate == "monte_carlo"

    @classmethod
    def offers(cls) -> frozenset[str]:
        return super().offers() - cls.kept  # a column of rollouts, which no pass gives

    @property
    def actions(self) -> int:
        """Of tokens, whatever T is: lengths, and what shapes rewards by them, count tokens."""
        return self.config.max_new_tokens

    def score(self, work: Hidden, predict: Score, asked: Sequence[Need] = ()) -> dict[str, Tensor]:
        """`{"log_probs": (B, T), "scored": (B, T) bool}`: which actions the log-probs stand for."""
        values, scored = self.chosen.function(predict, work.mask, work.noise)
        return {"log_probs": values, "scored": scored}


LIKELIHOODS = {"masked": f"{__name__}:Masked"}


def likelihood_class(name: str) -> type[Masked]:
    """By name, or by `path/to/file.py:name`."""
    return likelihood.likelihood_class(name, LIKELIHOODS, Masked)
