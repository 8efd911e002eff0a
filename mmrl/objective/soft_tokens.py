"""Gumbel-reparameterised soft tokens (SofT-GRPO): their density, and how their embeddings are mixed.

Both work on the few ids that were kept of the vocabulary at sampling.
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
