"""Log-probs, entropies and other probes of sampled tokens, without ever holding `(B, T, vocabulary)`.

Rows of hidden states pass the output head `rows` at a time; each chunk's logits become one number per probe and
row, and are made again in the backward pass (gradient checkpointing over all chunks but the last). Everything after
the head is float32 whatever the model's dtype. `score_rows_at_once` is the readable reference: the same numbers and
gradients from all logits at once.

A method adds a probe with

    @probe("margin")
    def margin(chunk: Chunk) -> Tensor:
        top = chunk.logits.topk(2).values
        return top[:, 0] - top[:, 1]

and asks for it with `Need("margin")`: a function of one chunk's logits, hidden states and actions to `(rows,)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl.errors import ConfigError, unknown
from mmrl.stages import Need


@dataclass(frozen=True)
class Distribution:
    """How raw logits become the distribution that is sampled from and scored under.

    temperature  divides the logits
    suppressed   ids that can never be sampled
    soft_cap     c in c * tanh(z / c), None for none
    scale        of the head's output, before everything else
    """

    temperature: float = 1.0
    suppressed: tuple[int, ...] = ()
    soft_cap: float | None = None
    scale: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """(..., V) any dtype -> (..., V) float32. Suppressed ids get the lowest finite number: probability 0
        without NaN in `p log p` or in gradients."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if self.suppressed:
            ids = torch.tensor(self.suppressed, device=logits.device)
            logits = logits.index_fill(-1, ids, torch.finfo(torch.float32).min)
        return logits


@dataclass
class Chunk:
    """What a probe sees of some rows.

    logits   (rows, V) float32, as sampled from: tempered, suppressed ids at the lowest finite number
    hidden   (rows, d) before the output head
    actions  (rows,) the sampled ids, or what else the likelihood scores
    """

    logits: Tensor
    hidden: Tensor
    actions: Tensor

    @cached_property
    def normalizer(self) -> Tensor:
        """(rows,) logsumexp of the logits."""
        return torch.logsumexp(self.logits, dim=-1)


Probe = Callable[..., Tensor]
PROBES: dict[str, Probe] = {}
Score = Callable[[Tensor, Chunk, Sequence[Need]], dict[str, Tensor]]
"""What is made of a chunk: `Likelihood.score` of a language policy."""


def probe(name: str) -> Callable[[Probe], Probe]:
    """Register a probe of language policies."""

    def register(function: Probe) -> Probe:
        if name in PROBES and PROBES[name].__qualname__ != function.__qualname__:
            raise ConfigError(f"probe {name!r} is registered twice")
        PROBES[name] = function
        return function

    return register


@probe("log_probs")
def log_probs(chunk: Chunk) -> Tensor:
    """(rows,) log-probability of the sampled token."""
    return chunk.logits.gather(-1, chunk.actions[:, None]).squeeze(-1) - chunk.normalizer


@probe("entropy")
def entropy(chunk: Chunk, *, top_p: float = 1.0) -> Tensor:
    """(rows,) entropy in nats; with `top_p` below 1, of the renormalised smallest set of that mass (ToR)."""
    if top_p < 1:
        return top_p_entropy(chunk.logits, top_p)
    probability = torch.exp(chunk.logits - chunk.normalizer[:, None])
    return chunk.normalizer - (probability * chunk.logits).sum(-1)


def top_p_entropy(logits: Tensor, top_p: float) -> Tensor:
    """(rows, V) -> (rows,): tokens by falling probability until their mass reaches `top_p`, renormalised."""
    ordered = logits.sort(dim=-1, descending=True).values
    p = torch.softmax(ordered, dim=-1)
    dropped = p.cumsum(-1) - p >= top_p
    # Renormalising by a second softmax leaves exactly 0 where one token is kept: rank methods count such ties.
    log_q = torch.log_softmax(ordered.masked_fill(dropped, torch.finfo(torch.float32).min), dim=-1)
    return -(log_q.exp() * log_q.masked_fill(dropped, 0.0)).sum(-1)


def probed(work: Tensor, chunk: Chunk, asked: Sequence[Need]) -> dict[str, Tensor]:
    """The log-probs of a chunk's actions `work (rows,)`, and the probes that are asked for."""
    for need in asked:
        if need.probe not in PROBES:
            raise ConfigError(unknown("probe", need.probe, PROBES))
    numbers = {need.key: PROBES[need.probe](chunk, **dict(need.options)) for need in asked}
    return {"log_probs": log_probs(chunk)} | numbers


def score_rows(
    hidden: Tensor,
    actions: Tensor,
    head: nn.Module,
    distribution: Distribution,
    asked: Sequence[Need] = (),
    *,
    rows: int = 1024,
    score: Score = probed,
) -> dict[str, Tensor]:
    """hidden (n, d), actions (n, ...) -> {"log_probs" or Need.key: (n,) float32}, `rows` rows of logits at a time."""

    def numbers(part: Tensor, taken: Tensor) -> dict[str, Tensor]:
        return score(taken, Chunk(distribution(head(part)), part, taken), asked)

    differentiable = torch.is_grad_enabled() and (
        hidden.requires_grad or any(p.requires_grad for p in head.parameters())
    )
    results: list[dict[str, Tensor]] = []
    parts, taken = hidden.split(rows), actions.split(rows)
    for i, (part, ids) in enumerate(zip(parts, taken, strict=True)):
        # The backward pass begins with the last chunk: its logits are kept, those of the others made again.
        if differentiable and i < len(parts) - 1:
            results.append(checkpoint(numbers, part, ids, use_reentrant=False))
        else:
            results.append(numbers(part, ids))
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}


def score_rows_at_once(
    hidden: Tensor, actions: Tensor, head: nn.Module, distribution: Distribution, asked: Sequence[Need] = ()
) -> dict[str, Tensor]:
    """The reference of `score_rows`: all logits in memory at once."""
    return probed(actions, Chunk(distribution(head(hidden)), hidden, actions), asked)
