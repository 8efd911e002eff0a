"""Decoding with keyed draws: each prompt is prefilled once, its cache serves the whole group.

The token at position t of a row is chosen by inverting the cumulative distribution at a uniform number drawn for
(seed, step, prompt, member, t) before decoding starts. So a row depends on nothing but its key and its prompt:
neither on how the batch was split, nor on which other rows are still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.policies.encoding import Encoded, collate
from mmrl.policies.scoring import ScoredLanguageModel


@dataclass
class Decoded:
    """tokens (B, N) and log_probs (B, N), 0 past `length (B,)`; `stopped (B,)` False where cut at the limit."""

    tokens: Tensor
    log_probs: Tensor
    length: Tensor
    stopped: Tensor


def choose(logits: Tensor, uniform: Tensor | None) -> Tensor:
    """logits (b, V) float32, uniform (b,) float64 in [0, 1) -> (b,) token ids; argmax without `uniform`.

    The first token whose cumulative probability exceeds the draw: never one of probability zero.
    """
    if uniform is None:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


@torch.no_grad()
def decode(
    model: ScoredLanguageModel,
    contexts: Sequence[Encoded],
    context: Tensor,
    uniforms: Tensor | None,
    budget: Tensor,
    is_stop: Callable[[Tensor, Tensor], Tensor],
) -> Decoded:
    """Write one continuation per row.

    contexts  U distinct prompts (with any replayed prefix), prefilled once each
    context   (B,) which of them a row continues
    uniforms  (B, N) float64 draws, or None for greedy decoding
    budget    (B,) tokens a row may write, at most N
    is_stop   (tokens written so far (b, n), newest included; rows (b,)) -> (b,) bool
    """
    device = next(model.parameters()).device
    count, steps = context.shape[0], int(budget.max())
    tokens = torch.zeros(count, steps, dtype=torch.long, device=device)
    log_probs = torch.zeros(count, steps, device=device)
    length = torch.zeros(count, dtype=torch.long, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    budget = budget.to(device)
    state = _Prefilled.of(model, contexts, context.to(device))
    uniforms = None if uniforms is None else uniforms.to(device)
    for step in range(steps):
        rows = state.rows
        newest = choose(state.logits, None if uniforms is None else uniforms[rows, step])
        writing = ~stopped[rows] & (length[rows] < budget[rows])
        tokens[rows, step] = newest * writing
        chosen = torch.log_softmax(state.logits, -1).gather(-1, newest[:, None]).squeeze(-1)
        log_probs[rows, step] = chosen * writing
        length[rows] += writing.long()
        stopped[rows] |= writing & is_stop(tokens[rows, : step + 1], rows)
        alive = ~stopped[rows] & (length[rows] < budget[rows])
        if not alive.any():
            break
        if 2 * int(alive.sum()) <= len(rows):
            state.keep(alive.nonzero().squeeze(-1))
            newest = newest[alive]
        state.advance(model, newest)
    return Decoded(tokens, log_probs, length, stopped)


@dataclass
class _Prefilled:
    """Rows still being written: their cache, attention mask, next position and next-token logits."""

    rows: Tensor
    logits: Tensor
    cache: object
    attention: Tensor
    position: Tensor

    @classmethod
    def of(cls, model: ScoredLanguageModel, contexts: Sequence[Encoded], context: Tensor) -> _Prefilled:
        from transformers import DynamicCache

        inputs = collate(contexts, None, None, context.device)
        cache = DynamicCache(config=model.core.config.get_text_config())
        logits = model.next_logits(inputs, cache)
        cache.batch_select_indices(context)
        position = torch.tensor([c.next_position for c in contexts], device=context.device)
        return cls(
            rows=torch.arange(len(context), device=context.device),
            logits=logits[context],
            cache=cache,
            attention=inputs["attention_mask"][context],
            position=position[context],
        )

    def keep(self, chosen: Tensor) -> None:
        """Forget rows that have ended."""
        self.cache.batch_select_indices(chosen)
        self.rows, self.attention = self.rows[chosen], self.attention[chosen]
        self.position = self.position[chosen]

    def advance(self, model: ScoredLanguageModel, tokens: Tensor) -> None:
        """Append one token (b,) to every row."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        inputs = {
            "input_ids": tokens[:, None],
            "attention_mask": self.attention,
            "position_ids": self.position[None, :, None].expand(3, -1, -1),
        }
        self.logits = model.next_logits(inputs, self.cache)
        self.position = self.position + 1
