"""Likelihoods on the vocabulary: Gumbel-reparameterised soft tokens (SofT-GRPO), one-token rollouts (OTR).

Both need vocabulary-sized tensors, so they run inside a forward pass, for one chunk of positions at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_token_log_prob(
    log_probs: Tensor, gumbels: Tensor, *, low: float = -1.5, high: float = 3.0, floor: float = -3.0
) -> Tensor:
    """(...) log-density of soft tokens whose Gumbel-perturbed log-probs were `gumbels`.

    log_probs  (..., k) current log-probs of the k ids that were kept at sampling
    gumbels    (..., k) `log p + Gumbel noise` at sampling; the mix of embeddings was softmax(gumbels / temperature)
    low, high  clamp of the standardised noise; floor  ids less likely than exp(floor) are left out of the mean

    Probabilities are renormalised over the kept ids. Source: SofT-GRPO (arXiv 2511.06411), torch_functional.py.
    """
    share = (log_probs.exp() + 1e-6) / (log_probs.exp() + 1e-6).sum(-1, keepdim=True)
    noise = (gumbels - share.log()).clamp(low, high)
    density = -noise - torch.exp(-noise)
    likely = (share.log() > floor).to(density.dtype)
    return (density * likely).sum(-1) / likely.sum(-1).clamp(min=1)


def soft_token_mix(log_probs: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Perturbed log-probs (..., k) to store, and the weights (..., k) that mix the embeddings of the kept ids.

    noise  (..., k) uniform numbers in (0, 1)
    """
    gumbels = log_probs - torch.log(-torch.log(noise.clamp(1e-12, 1 - 1e-12)))
    return gumbels, torch.softmax(gumbels / temperature, dim=-1)


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
