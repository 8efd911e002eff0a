"""Numbers of the next-token distribution that particular methods read, one for each sampled token.

Each sees one chunk's logits and never leaves the forward pass; all carry gradient where the pass does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmrl.policies.language.log_probs import PROBES as PROBES
from mmrl.policies.language.log_probs import Chunk, entropy, probe

NEVER = -1e4
"""Log-probability of a token outside a truncated distribution: the released Lp-Reg's value."""


@probe("tempered_log_probs")
def tempered_log_probs(chunk: Chunk, *, temperature: float) -> Tensor:
    """(rows,) log-probability of the sampled token at `temperature` times the sampling temperature (DCPO)."""
    logits = chunk.logits / temperature
    return logits.gather(-1, chunk.actions[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)


@probe("normalized_entropy")
def normalized_entropy(chunk: Chunk) -> Tensor:
    """(rows,) entropy over log V, in [0, 1] (DGPO)."""
    return entropy(chunk) / math.log(chunk.logits.shape[-1])


@probe("expected_entropy_slope")
def expected_entropy_slope(chunk: Chunk) -> Tensor:
    """(rows,) sum_v p_v S_v with S = p (H + log p), without storing S: H sum p^2 + sum p^2 log p (Clip_V)."""
    log_p = chunk.logits - chunk.normalizer[:, None]
    square = (2 * log_p).exp()
    return entropy(chunk) * square.sum(-1) + (square * log_p.clamp(min=NEVER)).sum(-1)


@probe("nucleus_entropy")
def nucleus_entropy(chunk: Chunk, *, top_p: float, inclusive: bool = True) -> Tensor:
    """(rows,) entropy of the renormalised nucleus; which tokens belong to it carries no gradient (SIREN).

    inclusive  the smallest set of mass `top_p` or more; False leaves out the token that crosses it
    """
    if inclusive:
        return entropy(chunk, top_p=top_p)
    log_p, _ = torch.log_softmax(chunk.logits, dim=-1).sort(dim=-1, descending=True)
    kept = log_p.exp().cumsum(-1) < top_p
    p = log_p.exp().masked_fill(~kept, 0.0)
    mass = p.sum(-1)
    full = mass.clamp(min=torch.finfo(mass.dtype).tiny)
    return torch.where(mass > 0, full.log() - (p * log_p.masked_fill(~kept, 0.0)).sum(-1) / full, mass)


@probe("min_p_log_probs")
def min_p_log_probs(chunk: Chunk, *, kappa: float, fixed: bool = False) -> Tensor:
    """(rows,) log-probability of the sampled token among tokens with p >= kappa max p, renormalised (Lp-Reg).

    fixed  keep p >= kappa instead. A sampled token that is not kept gets -1e4.
    """
    log_p = chunk.logits - chunk.normalizer[:, None]
    floor = math.log(kappa) + (0.0 if fixed else log_p.max(-1, keepdim=True).values)
    kept = log_p >= floor
    own = log_p.gather(-1, chunk.actions[:, None]).squeeze(-1)
    mass = torch.logsumexp(log_p.masked_fill(~kept, -torch.inf), dim=-1)
    sampled = kept.gather(-1, chunk.actions[:, None]).squeeze(-1)
    return torch.where(sampled, own - mass.masked_fill(~sampled, 0.0), torch.full_like(own, NEVER))


@probe("token_log_prob")
def token_log_prob(chunk: Chunk, *, token: int) -> Tensor:
    """(rows,) log-probability of one given token in place of the sampled one (LaSeR)."""
    return (chunk.logits[:, token] - chunk.normalizer).clamp(min=NEVER)


@probe("one_token_rollout")
def one_token(chunk: Chunk, *, samples: int, temperature: float, miss: float) -> Tensor:
    """(rows,) mean reward-weighted log-prob of `samples` candidates for each token (OTR).

    Candidates are drawn by systematic sampling, at the middle of equal shares of probability: the same in every
    micro-batch, and with less variance than independent draws.
    """
    shares = (torch.arange(samples, device=chunk.logits.device) + 0.5) / samples
    uniform = shares.expand(len(chunk.logits), samples)
    return one_token_rollout(chunk.logits, chunk.actions, uniform, temperature=temperature, miss=miss)


def one_token_rollout(
    logits: Tensor, targets: Tensor, uniform: Tensor, *, temperature: float = 1.3, miss: float = -0.1
) -> Tensor:
    """OTR: supervised tokens as groups of one-token rollouts. Returns the objective of each position, (...).

    logits       (..., V)
    targets      (...) ids of the ground truth, rewarded with 1
    uniform      (..., K) numbers that draw K candidates from softmax(logits / temperature)
    temperature  of the candidates; higher explores
    miss         reward of a wrong candidate, a little below 0

    `mean_k R(a_k) lp(a_k)`: the candidates are constants, the log-probs carry gradient. In expectation at
    temperature 1 and miss 0 the gradient is that of supervised learning times the target's probability. Source:
    abstract and a summary of arXiv 2509.26313; defaults from memory, the paper draws 256.
    """
    with torch.no_grad():
        steps = torch.softmax(logits / temperature, dim=-1).cumsum(-1)
        drawn = torch.searchsorted(steps, uniform.to(steps) * steps[..., -1:]).clamp(max=logits.shape[-1] - 1)
        reward = torch.where(drawn == targets[..., None], 1.0, miss).to(logits.dtype)
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, drawn)
    return (reward * log_probs).mean(-1)
