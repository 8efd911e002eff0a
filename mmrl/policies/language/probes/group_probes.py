"""Probes that compare the members of a group, or the policy with its reference: they need more than one row's logits.

They see hidden states, which exist inside the pass and are never stored; every result is one number for each
token. Logits are made some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.credit.divergence import position_divergence
from mmrl.objective.credit.representation import residual_weights, token_hidden_reward
from mmrl.policies.language.log_probs import Chunk, log_probs, probe
from mmrl.record import Rollouts
from mmrl.stages import Need

ROWS = 1024
"""Rows of logits alive at once."""
VECTORS = frozenset({"states", "gradient_proxy"})
"""Probes of a vector for each token, too wide for a column."""


@torch.no_grad()
def of_groups(
    rollouts: Rollouts, states: Tensor, needs: Sequence[Need], logits: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """`{Need.key: (B, T)}` of probes that compare the members of a group; the rollouts must hold whole groups."""
    columns = {need.key: torch.zeros_like(rollouts.old_log_probs) for need in needs}
    for g in torch.unique(rollouts.group).tolist():
        rows = (rollouts.group == g).nonzero().squeeze(1)
        success = None if rollouts.success is None else rollouts.success[rows]
        group = Group(states[rows], rollouts.actions[rows], rollouts.mask[rows], success, logits)
        for need in needs:
            columns[need.key][rows] = GROUP_PROBES[need.probe](group, **dict(need.options)).to(states.device)
    return columns


@probe("states")
def states(chunk: Chunk) -> Tensor:
    """(rows, d) float32 hidden states before the output head."""
    return chunk.hidden.float()


@probe("gradient_proxy")
def gradient_proxy(chunk: Chunk) -> Tensor:
    """(rows, d) float32 (1 - p) h: the direction in which the sampled token pulls the output head (DelTA)."""
    return (1 - log_probs(chunk).exp())[:, None] * chunk.hidden.float()


@dataclass
class Group:
    """One group inside a pass.

    states   (G, T, d) before the output head
    actions  (G, T) sampled ids
    mask     (G, T) bool
    success  (G,) 1, 0 or NaN; None where no reward is a verifier
    logits   (n, d) -> (n, V) float32 logits as sampled from
    """

    states: Tensor
    actions: Tensor
    mask: Tensor
    success: Tensor | None
    logits: Callable[[Tensor], Tensor]

    @property
    def right(self) -> Tensor:
        """(G,) bool."""
        if self.success is None:
            raise ConfigError("a probe of right and wrong rollouts reads the success flag, and no reward is a verifier")
        return self.success.nan_to_num(0) >= 0.5


GroupProbe = Callable[..., Tensor]
GROUP_PROBES: dict[str, GroupProbe] = {}


def group_probe(name: str) -> Callable[[GroupProbe], GroupProbe]:
    """Register a probe of whole groups."""

    def register(function: GroupProbe) -> GroupProbe:
        GROUP_PROBES[name] = function
        return function

    return register


@group_probe("group_divergence")
def group_divergence(group: Group, *, kind: str = "code") -> Tensor:
    """(G, T) disagreement of the group's next-token distributions at each position, in every row (TW-GRPO)."""
    rows, width, size = group.states.shape
    at_once = max(ROWS // rows, 1)
    parts = []
    for start in range(0, width, at_once):
        piece = group.states[:, start : start + at_once]
        log_probs = torch.log_softmax(group.logits(piece.reshape(-1, size)), dim=-1)
        log_probs = log_probs.view(rows, piece.shape[1], -1)
        parts.append(position_divergence(log_probs, group.mask[:, start : start + at_once], kind))
    return torch.cat(parts).expand(rows, width) * group.mask


@group_probe("token_hidden_reward")
def hidden_reward(group: Group) -> Tensor:
    """(G, T) pull of each token on the likelihood of the right rollouts (THR, NTHR)."""
    hidden, actions = group.states[group.mask], group.actions[group.mask]
    seen, place = torch.unique(actions, return_inverse=True)
    errors = torch.zeros(len(actions), len(seen), device=hidden.device)
    for rows in pieces(len(actions)):
        errors[rows] = -torch.softmax(group.logits(hidden[rows]), dim=-1)[:, seen]
    errors[torch.arange(len(actions), device=hidden.device), place] += 1
    right = group.right[:, None].expand_as(group.mask)[group.mask]
    return _back(token_hidden_reward(errors, hidden, right), group.mask)


@group_probe("residual_weight")
def residual_weight(group: Group, *, rank: int = 64, low: float = 0.1) -> Tensor:
    """(G, T) how far tokens of wrong rollouts leave the subspace of the right ones; 1 on right rollouts (ResRL)."""
    right = group.right[:, None] & group.mask
    wrong = ~group.right[:, None] & group.mask
    weight = group.mask.to(group.states.dtype)
    if right.any() and wrong.any():
        weight[wrong] = residual_weights(group.states[right], group.states[wrong], rank=rank, low=low)
    return weight


def hellinger(first: Callable[[slice], Tensor], second: Callable[[slice], Tensor], count: int) -> Tensor:
    """(count,) squared Hellinger distance of two next-token distributions, from their logits some rows at a time."""
    parts = []
    for rows in pieces(count):
        both = torch.log_softmax(first(rows), dim=-1) + torch.log_softmax(second(rows), dim=-1)
        parts.append(-torch.expm1(torch.logsumexp(both / 2, dim=-1)))
    return torch.cat(parts).clamp(0, 1) if parts else torch.zeros(0)


def pieces(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))


def _back(values: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
