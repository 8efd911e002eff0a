"""ReMix: a router over adapters that weigh alike, learnt by leave-one-out and not through its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.tools import tool


def subset_log_prob(log_q: Tensor, drawn: Tensor) -> Tensor:
    """log probability of an ordered draw without replacement: sum_j [log q_ij - log(1 - what was drawn before)].

    log_q (..., n) log-probabilities; drawn (..., k) different indices. Returns (...), with gradient to log_q.
    """
    own = log_q.gather(-1, drawn)
    before = own.exp().cumsum(-1) - own.exp()
    return (own - torch.log1p(-before.clamp(max=1 - 1e-7))).sum(-1)


def drawn_subsets(log_q: Tensor, size: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, ..., size) ordered subsets of the n of log_q (..., n), without replacement: the largest of
    log_q + Gumbel noise."""
    uniform = torch.rand(count, *log_q.shape, generator=generator, dtype=torch.float64)
    return (log_q.detach() - (-uniform.log()).log()).topk(size, dim=-1).indices


@tool(
    "remix_lora_routing",
    command="from mmrl.weights.remix_router import RoutedLoras, router_loss",
    paper="ReMix: reinforcement routing for mixtures of LoRAs, arXiv 2603.10160",
    formula="subsets m ~ q without replacement, y = W x + w sum_(i in m) B_i A_i x; grad = mean_m (l_m - mean_(j != m) "
    "l_j) grad log q(m)",
    confidence="partly",
)
def router_loss(losses: Tensor, log_probs: Tensor) -> Tensor:
    """The router's gradient: subsets that cost less than the others become likelier.

    losses (M, ...) of M subsets of each input, no gradient; log_probs (M, ...) of those subsets. Returns (...): its
    gradient is the unbiased leave-one-out estimate of that of the expected loss. The adapters take the ordinary
    gradient of `losses`. Source: abstract and summaries; the layer below is ours.
    """
    if len(losses) < 2:
        raise ConfigError(f"remix_lora_routing: {len(losses)} subsets leave nothing to compare with; draw at least 2")
    losses = losses.detach()
    others = (losses.sum(0) - losses) / (len(losses) - 1)
    return ((losses - others) * log_probs).mean(0)


class RoutedLoras(nn.Module):
    """A frozen linear layer with `count` LoRAs, of which `active` act on each input with the same constant weight.

    Inputs (..., d) share a subset where they share `drawn (..., active)`; without it the likeliest act, as when nobody
    trains. B starts at 0, so the layer starts as it was.
    """

    def __init__(self, base: nn.Linear, count: int, active: int, rank: int, weight: float | None = None):
        super().__init__()
        if not 0 < active <= count:
            raise ConfigError(f"remix_lora_routing: {active} active of {count} adapters; expected 1 to {count}")
        self.base = base.requires_grad_(False)
        self.active, self.weight = active, 1 / active if weight is None else weight
        self.router = nn.Linear(base.in_features, count)
        self.a = nn.Parameter(torch.randn(count, rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(count, base.out_features, rank))

    def log_q(self, inputs: Tensor) -> Tensor:
        """(..., count)"""
        return torch.log_softmax(self.router(inputs), dim=-1)

    def forward(self, inputs: Tensor, drawn: Tensor | None = None) -> Tensor:
        drawn = self.log_q(inputs).topk(self.active, dim=-1).indices if drawn is None else drawn
        each = torch.einsum("...d,nrd,nor->...no", inputs, self.a, self.b)
        chosen = each.gather(-2, drawn[..., None].expand(*drawn.shape, each.shape[-1]))
        return self.base(inputs) + self.weight * chosen.sum(-2)
