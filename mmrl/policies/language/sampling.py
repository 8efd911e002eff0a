"""Decoding with keyed draws: each prompt is prefilled once, its cache serves the whole group.

The token at position t of a row is chosen by inverting the cumulative distribution at a uniform number drawn for
(seed, step, prompt, member, t) before decoding starts. So a row depends on nothing but its key and its prompt:
neither on how the batch was split, nor on which other rows are still being written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.language.encoded import Encoded, model_positions
from mmrl.policies.language.encoding import collate, extended
from mmrl.policies.language.fast import lean, native
from mmrl.policies.language.fast.prefill import Prefill, stacked
from mmrl.policies.language.fast.shared_decode import SharedPrefix
from mmrl.policies.language.fast.written import in_place
from mmrl.policies.language.scoring import ScoredLanguageModel
from mmrl.record import pad_columns


@dataclass
class Decoded:
    """tokens (B, N) and log_probs (B, N), 0 past `length (B,)`; `stopped (B,)` False where cut at the limit.

    kept  {name: (B, N, ...)} what else the tokens were drawn with, for a likelihood that reads it of the replay
    """

    tokens: Tensor
    log_probs: Tensor
    length: Tensor
    stopped: Tensor
    kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Decoded]) -> Decoded:
        """Rows of all parts, N padded to the widest."""
        tokens = torch.cat(pad_columns([p.tokens for p in parts]))
        log_probs = torch.cat(pad_columns([p.log_probs for p in parts]))
        kept = {name: torch.cat(pad_columns([p.kept[name] for p in parts])) for name in parts[0].kept}
        length, stopped = torch.cat([p.length for p in parts]), torch.cat([p.stopped for p in parts])
        return cls(tokens, log_probs, length, stopped, kept)


def choose(logits: Tensor, uniform: Tensor | None) -> Tensor:
    """logits (b, V) float32, uniform (b,) float64 in [0, 1) -> (b,) token ids; argmax without `uniform`.

    The first token whose cumulative probability exceeds the draw: never one of probability zero.
    """
    if uniform is None:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return place.clamp(max=logits.shape[-1] - 1)  # past the end only where a logit is not a number


@torch.no_grad()
def decode(
    model: ScoredLanguageModel,
    contexts: Sequence[Encoded],
    context: Tensor,
    uniforms: Tensor | None,
    budget: Tensor,
    is_stop: Callable[[Tensor, Tensor], Tensor],
    prefills: Sequence[Prefill | None] | None = None,
    *,
    begin: Callable[..., Any] | None = None,
) -> Decoded:
    """Write one continuation per row.

    contexts  U distinct prompts (with any replayed prefix), prefilled once each
    context   (B,) which of them a row continues, ascending
    uniforms  (B, N) float64 draws, or None for greedy decoding
    budget    (B,) tokens a row may write, at most N
    is_stop   (tokens written so far (b, n), newest included; rows (b,)) -> (b,) bool
    prefills  of those prompts that have been prefilled already
    begin     as `begun`, for rows that are drawn from something else than the model's own distribution

    Finished rows leave as soon as they have been carried through as many steps of a row as there are rows left: to
    choose those copies their caches, about what a step of them reads. So both cost at most twice the better of them.
    """
    device = next(model.parameters()).device
    count, steps = context.shape[0], int(budget.max())
    tokens = torch.zeros(count, steps, dtype=torch.long, device=device)
    log_probs = torch.zeros(count, steps, device=device)
    length = torch.zeros(count, dtype=torch.long, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    budget = budget.to(device)
    state = (begin or begun)(model, contexts, context.to(device), prefills, steps)
    uniforms = None if uniforms is None else uniforms.to(device)
    carried, writing = 0, budget > 0
    left = int(writing.sum())
    for step in range(steps):
        rows = state.rows
        at = rows if len(rows) < count else slice(None)  # a slice is no copy
        newest = choose(state.logits, None if uniforms is None else uniforms[at, step])
        chosen = torch.log_softmax(state.logits, -1).gather(-1, newest[:, None]).squeeze(-1)
        tokens[at, step], log_probs[at, step] = newest * writing, chosen * writing
        ended = is_stop(tokens[at, : step + 1], rows)
        alive = writing & ~ended & (budget[at] > step + 1)
        before, left = left, int(alive.sum())
        if left < before:
            last = writing & ~alive
            length[rows[last]], stopped[rows[last]] = step + 1, ended[last]
        if not left:
            break
        writing, carried = alive, carried + len(rows) - left
        if carried >= left:
            state.keep(alive.nonzero().squeeze(-1))
            newest, writing, carried = newest[alive], alive[alive], 0
        state.advance(newest)
    return Decoded(tokens, log_probs, length, stopped)


def begun(
    model: ScoredLanguageModel,
    contexts: Sequence[Encoded],
    context: Tensor,
    prefills: Sequence[Prefill | None] | None = None,
    steps: int = 0,
) -> _Rows:
    """Rows of which nothing is written yet, in the fastest way in which the model decodes."""
    if model.shares_prefixes:
        return SharedCache(model, contexts, context, prefills, steps)
    return (RepeatedCache if model.repeats_prefixes else Recomputed)(model, contexts, context)


class _Rows(ABC):
    """Rows still being written: which they are, their next position, and their next-token logits."""

    cache: Any
    logits: Tensor

    def __init__(self, model: ScoredLanguageModel, contexts: Sequence[Encoded], context: Tensor):
        self.model, self.device, self.context = model, context.device, context
        self.contexts, self.config = contexts, model.core.config.get_text_config()
        self.rows = torch.arange(len(context), device=context.device)
        self.position = torch.tensor([c.next_position for c in contexts], device=context.device)[context]
        names = {name for c in contexts for name in c.aligned}
        self.after = {name: self._after(name)[context] for name in sorted(names)}

    def _after(self, name: str) -> Tensor:
        """(U, 1, ...) what the next token of each context adds to a token-aligned input."""
        example = next(c for c in self.contexts if name in c.aligned)
        absent = torch.zeros_like(example.appended(name, 1))
        rows = [c.appended(name, 1) if name in c.aligned else absent for c in self.contexts]
        return torch.stack(rows).to(self.device)

    def keep(self, chosen: Tensor) -> None:
        """Forget the other rows."""
        self.rows, self.context, self.position = self.rows[chosen], self.context[chosen], self.position[chosen]
        self.after = {name: rows[chosen] for name, rows in self.after.items()}

    @abstractmethod
    def memory(self, count: int) -> dict[str, Any]:
        """What the model needs beside `cache` to see the past of `count` rows."""

    def advance(self, tokens: Tensor) -> None:
        """Append one token (b,) to every row."""
        positions = self.position[None, :, None].expand(len(self.contexts[0].positions), -1, -1)
        positions = model_positions(positions.to(self.contexts[0].positions.dtype))
        inputs = {"input_ids": tokens[:, None], "position_ids": positions, **self.after, **self.memory(len(tokens))}
        self.logits = self.model.next_logits(inputs, self.cache)
        self.position = self.position + 1


class RepeatedCache(_Rows):
    """The prompt's keys and values repeated for every row of its group: any attention backend and layer type."""

    def __init__(self, model: ScoredLanguageModel, contexts: Sequence[Encoded], context: Tensor):
        super().__init__(model, contexts, context)
        inputs = collate(contexts, None, None, self.device, model.family)
        self.cache = model.family.cache()
        self.logits = model.next_logits(inputs, self.cache)[context]
        self.cache.reorder_cache(context)
        self.attention = inputs["attention_mask"][context]

    def keep(self, chosen: Tensor) -> None:
        super().keep(chosen)
        self.cache.reorder_cache(chosen)
        self.attention = self.attention[chosen]

    def memory(self, count: int) -> dict[str, Any]:
        self.attention = torch.cat([self.attention, self.attention.new_ones(count, 1)], dim=1)
        return {"attention_mask": self.attention}


class Recomputed(_Rows):
    """No cache: prompt and response run again for every token. For models whose cache is not exact."""

    def __init__(self, model: ScoredLanguageModel, contexts: Sequence[Encoded], context: Tensor):
        super().__init__(model, contexts, context)
        self.written = torch.zeros(len(context), 0, dtype=torch.long, device=context.device)
        self._run()

    def _run(self) -> None:
        rows = [extended(self.contexts[c], w.cpu()) for c, w in zip(self.context.tolist(), self.written, strict=True)]
        inputs = [collate([row], None, None, self.device, self.model.family) for row in rows]
        self.logits = torch.cat([self.model.next_logits(one) for one in inputs])

    def keep(self, chosen: Tensor) -> None:
        super().keep(chosen)
        self.written = self.written[chosen]

    def memory(self, count: int) -> dict[str, Any]:
        return {}

    def advance(self, tokens: Tensor) -> None:
        self.written = torch.cat([self.written, tokens[:, None]], dim=1)
        self._run()


class SharedCache(_Rows):
    """One copy of each prompt's keys and values for its whole group; rows cache their own tokens."""

    def __init__(
        self,
        model: ScoredLanguageModel,
        contexts: Sequence[Encoded],
        context: Tensor,
        prefills: Sequence[Prefill | None] | None = None,
        steps: int = 0,
    ):
        """steps: how many tokens a row may append by steps that are written out; 0: through the model's modules"""
        super().__init__(model, contexts, context)
        known = prefills or [None] * len(contexts)
        new = iter(model.prefill([c for c, p in zip(contexts, known, strict=True) if p is None]))
        ready = [next(new) if p is None else p for p in known]
        self.logits = model.logits(torch.cat([p.last for p in ready]))[context]
        self.prompts, self.real = stacked(ready, self.config)
        self.prefix = SharedPrefix.of(self.prompts, self.real, context)
        self.cache = in_place(model.family.cache())
        # The attention needs no mask; one of four dimensions tells transformers not to make one.
        self.no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self.lean: lean.Lean | native.Native | None = None
        if steps:
            if model.leans is None and not model.not_lean:
                model.leans = self._gives(lean.Lean)
            if model.natives is None and not model.not_native:
                model.natives = self._gives(native.Native)
            if not model.not_lean:
                self.lean = self._written(lean.Lean if model.not_native else native.Native, steps)

    def _written(self, kind: type[lean.Lean | native.Native], steps: int) -> lean.Lean | native.Native:
        return kind(self.model, self.position, steps, len(self.contexts[0].positions))

    def _gives(self, kind: type[lean.Lean | native.Native]) -> bool:
        """Whether two steps that are written out so give the logits of the model's; nothing of them stays."""
        cache, position, logits, written = self.cache, self.position, self.logits, self._written(kind, 2)
        same = True
        self.cache = in_place(self.model.family.cache())
        for _ in range(2):
            tokens = self.logits.argmax(-1)
            found = self.model.distribution(written.logits(tokens, self.position, self.prefix))
            self.advance(tokens)
            same = same and lean.close(found, self.logits)
        self.cache, self.position, self.logits = cache, position, logits
        return same

    def advance(self, tokens: Tensor) -> None:
        if self.lean is None:
            return super().advance(tokens)
        self.logits = self.model.distribution(self.lean.logits(tokens, self.position, self.prefix))
        self.position = self.position + 1

    def keep(self, chosen: Tensor) -> None:
        super().keep(chosen)
        self.cache.batch_select_indices(chosen)
        if self.lean is not None:
            self.lean.keep(chosen)
        used, self.context = torch.unique(self.context, return_inverse=True)
        if len(used) < len(self.real):
            self.prompts.batch_select_indices(used)
            self.real = self.real[used]
        self.prefix = SharedPrefix.of(self.prompts, self.real, self.context)

    def memory(self, count: int) -> dict[str, Any]:
        return {"attention_mask": self.no_mask, "shared_prompt": self.prefix}
