"""A block cache: between neighbouring steps that train nothing, a transformer's later blocks change little.

    whole step    y = tail(b(x)),   r = y - b(x),   b the first block and tail all others
    reused step   y = b(x) + r,     r of the whole step before

The first block always runs. What a reused step finds is another velocity than the policy's, so no step that draws noise
is reused unless it is asked for (`drawn`): log-probs hold by construction, and where it is asked for the self-check
decides. Steps are reused by the schedule, or, among those, row by row where the first block's own change is near that
of the row's last whole step (`threshold`, the first-block cache):

    change = mean |d - d_whole| / mean |d_whole|,   d = b(x) - x

Published caches take that mean over the batch. Here every row has its own, so that a rollout is the same whoever
shares its batch. Evaluation reuses nothing. After HGC's abstract (arXiv 2511.11031): this is the coarse one of its two
grains, the fine one is `prompt_cache`; the steps and the share at the ends are ours. The change is that of diffusers,
hooks/first_block_cache.py (read), which keeps the later blocks' residual too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.policies.generation.calls import Calls
from mmrl.settings import Section
from mmrl.tools import tool

Call = tuple[str, int]
"""A transformer by name, and which of its calls in a step."""
Run = Callable[[Tensor], Tensor]
"""Rows of a step, to their velocities."""
LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks")
"""What diffusers calls the lists of a transformer's blocks."""


@tool(
    "hgc",
    command="mmrl train flow CONFIG policy.reuse.every=2",
    paper="HGC, arXiv 2511.11031",
    formula="reused step: y = b(x) + r, r = tail(b(x)) - b(x) of the last whole step",
    confidence="reconstructed",
    modalities=("flow",),
    trains=True,
)
class ReuseConfig(Section):
    """Which steps of a rollout reuse blocks.

    every      of so many neighbouring steps one is whole; null: all are, and `text` alone is reused
    text       of so many neighbouring steps one asks the text, and the others take from it what that one took, where
               the transformer attends to text apart (HGC's maps of cross-attention; `prompt_cache`); null: all ask
    ends       share of the steps at either end that are always whole: there velocities change most
    threshold  a row reuses where its first block's change is at most this, and is asked anew, as a whole call more,
               where it is not; with a large `every` it decides alone. diffusers' default is .05, and .1 to .2 are fast.
               null: the schedule alone decides
    drawn      also steps that draw noise. Their log-probs are then not the policy's own, and the self-check before the
               first update says whether they are near enough (`training.self_check`; `training.check_every` repeats it)
    """

    every: int | None = Field(2, ge=2)
    text: int | None = Field(None, ge=2)
    ends: float = Field(0.15, ge=0, lt=0.5)
    threshold: float | None = Field(None, gt=0)
    drawn: bool = False

    @model_validator(mode="after")
    def _rows_decide_of_blocks(self) -> ReuseConfig:
        if self.every is None and self.text is None:
            raise ConfigError("reuse: every=null and text=null reuse nothing; set policy.reuse=null")
        if self.threshold is not None and (self.text is not None or self.every is None):
            raise ConfigError(
                "reuse.threshold: rows that decide for themselves are asked anew, blocks and text alike; it goes with "
                "`every`, and with text=null"
            )
        return self

    def reused(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` may reuse those before it. The one before a run of reused steps is whole."""
        return self._within(step, steps, self.every)

    def text_reused(self, step: int, steps: int) -> bool:
        """Whether that step may take what an earlier one took from the text."""
        return self._within(step, steps, self.text)

    def _within(self, step: int, steps: int, every: int | None) -> bool:
        low = max(1, round(self.ends * steps))
        return every is not None and low <= step < steps - low and (step - low) % every < every - 1


class Blocks:
    """The blocks of a denoiser's transformers, their later ones' residuals kept from one whole step to the next.

    share  of the blocks that a reused call runs
    kept   {call: residuals of the later blocks}, and of the first one in `heads`, at each row's last whole step
    asked  the calls of this step, in their order
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules = modules
        self.lists = {name: blocks_of(module) for name, module in modules.items()}
        self.share = 1 / min(len(blocks) for blocks in self.lists.values())
        self.kept: dict[Call, tuple[Tensor, Tensor | None]] = {}
        self.heads: dict[Call, Tensor] = {}
        self.changes: dict[Call, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.asked: list[Call] = []

    def knows(self, names: Iterable[str]) -> bool:
        """Whether the whole step before asked these transformers: experts take turns along the schedule."""
        return {name for name, _ in self.kept} >= set(names)

    def velocities(
        self, run: Run, chunks: Sequence[Tensor], counts: Calls, *, again: bool, threshold: float | None = None
    ) -> list[Tensor]:  # fmt: skip
        """`run(rows)` of every chunk: whole and kept, or again; a row above `threshold` is whole after all."""
        parts, asked = [], []
        with self.step(again), counts.shared(self.share if again else 1.0):
            for rows in chunks:
                before = len(self.asked)
                parts.append(run(rows))
                asked.append(self.asked[before:])
        if again and threshold is not None:
            for part, rows, calls in zip(parts, chunks, asked, strict=True):
                anew = (self._change(calls, len(rows)) > threshold).nonzero().squeeze(1)
                if len(anew):
                    part[anew] = self._anew(run, rows[anew.to(rows.device)], calls, anew, len(rows))
        return parts

    def _change(self, calls: Sequence[Call], rows: int) -> Tensor:
        """(rows,) the largest change of a row in the calls of its step: a guided step makes two, or one of two rows."""
        uneven = next((call for call in calls if len(self.changes[call]) % rows), None)
        if uneven is not None:
            raise ConfigError(
                f"policy.reuse.threshold: {uneven[0]} was asked for {len(self.changes[uneven])} rows of {rows}, so "
                "rows cannot decide for themselves; set policy.reuse.threshold=null"
            )
        return torch.cat([self.changes[call].view(-1, rows) for call in calls]).amax(0)

    def _anew(self, run: Run, rows: Tensor, calls: Sequence[Call], places: Tensor, of: int) -> Tensor:
        """Whole calls of some rows of a chunk of `of`; what they find replaces what was kept of them."""
        fresh = Blocks(self.modules)
        with fresh.step(False):
            found = run(rows)
        for own, call in zip(calls, fresh.asked, strict=True):
            at = torch.cat([places + k * of for k in range(len(self.heads[own]) // of)])
            pairs = zip((self.heads[own], *self.kept[own]), (fresh.heads[call], *fresh.kept[call]), strict=True)
            for held, new in pairs:
                if held is not None and new is not None:
                    held[at] = new
        return found

    @contextmanager
    def step(self, again: bool) -> Iterator[None]:
        """Transformers that run inside reuse what they found in the whole step before, call by call, or keep it."""
        self.calls, self.asked = dict.fromkeys(self.lists, -1), []
        if not again:
            self.kept, self.heads = {}, {}
        with ExitStack() as stack:
            for name, blocks in self.lists.items():
                first: list[Any] = [None]
                stack.enter_context(in_place(blocks[0], self._head(name, blocks[0], first, again)))
                for block in blocks[1:-1]:
                    if again:
                        stack.enter_context(in_place(block, _passing(block)))
                tail = self._reused(name, blocks[-1]) if again else self._noted(name, blocks[-1], first)
                stack.enter_context(in_place(blocks[-1], tail))
            yield

    def _head(self, name: str, block: nn.Module, first: list[Any], again: bool) -> Callable[..., Any]:
        run = block.forward

        def forward(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            call = name, self.calls[name]
            self.asked.append(call)
            before = _given(block, args, named)[0]
            out = run(*args, **named)
            first[0] = _states(block, out)
            if again:
                self.changes[call] = change(first[0][0] - before, self.heads[call])
            else:
                self.heads[call] = first[0][0] - before
            return out

        return forward

    def _noted(self, name: str, block: nn.Module, first: list[Any]) -> Callable[..., Any]:
        run = block.forward

        def forward(*args: Any, **named: Any) -> Any:
            out = run(*args, **named)
            (hidden, text), (hidden_0, text_0) = _states(block, out), first[0]
            if hidden.shape != hidden_0.shape:
                raise ConfigError(
                    f"policy.reuse: {type(block).__name__} returns states of {tuple(hidden.shape)} and the first block "
                    f"{tuple(hidden_0.shape)}, so nothing can be reused between them; set policy.reuse=null"
                )
            moved = None if text is None or text_0 is None or text.shape != text_0.shape else text - text_0
            self.kept[name, self.calls[name]] = hidden - hidden_0, moved
            return out

        return forward

    def _reused(self, name: str, block: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **named: Any) -> Any:
            hidden, text = _given(block, args, named)
            moved, moved_text = self.kept[name, self.calls[name]]
            return _returned(block, hidden + moved, None if moved_text is None or text is None else text + moved_text)

        return forward


def change(now: Tensor, whole: Tensor) -> Tensor:
    """(N,) mean |now - whole| / mean |whole| of `(N, ...)`: what the first-block cache decides by."""
    apart, size = (x.abs().flatten(1).mean(1) for x in ((now - whole).float(), whole.float()))
    return apart / size.clamp(min=torch.finfo(torch.float32).tiny)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """All blocks in the order they run; ConfigError where diffusers does not say what they return."""
    named = [
        (n, p) for n, p in module.named_modules() if n.rpartition(".")[2] in LISTS and isinstance(p, nn.ModuleList)
    ]
    depth = min((name.count(".") for name, _ in named), default=0)  # adapters wrap; refiners have lists of their own
    blocks = [block for name, part in named if name.count(".") == depth for block in part]
    if len(blocks) < 2:
        raise ConfigError(f"policy.reuse: no blocks were found in {type(module).__name__}; set policy.reuse=null")
    for block in blocks:
        _places(block)
        if "hidden_states" not in inspect.signature(type(block).forward).parameters:
            raise ConfigError(
                f"policy.reuse: {type(block).__name__} calls its states by a name of its own; set policy.reuse=null"
            )
    return blocks


def _places(block: nn.Module) -> tuple[int, int | None]:
    """Where a block's output has the hidden states, and where those of the text; None: it returns none."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        known = TransformerBlockRegistry.get(type(block))
    except ValueError:
        raise ConfigError(
            f"policy.reuse: diffusers does not say what {type(block).__name__} returns; set policy.reuse=null"
        ) from None
    return known.return_hidden_states_index, known.return_encoder_hidden_states_index


def _states(block: nn.Module, out: Any) -> tuple[Tensor, Tensor | None]:
    hidden, text = _places(block)
    if not isinstance(out, tuple):
        return out, None
    return out[hidden], None if text is None else out[text]


def _given(block: nn.Module, args: tuple, named: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    found = inspect.signature(type(block).forward).bind(block, *args, **named).arguments
    return found["hidden_states"], found.get("encoder_hidden_states")


def _returned(block: nn.Module, hidden: Tensor, text: Tensor | None) -> Any:
    at, text_at = _places(block)
    if text_at is None:
        return hidden
    out: list[Any] = [None, None]
    out[at], out[text_at] = hidden, text
    return tuple(out)


def _passing(block: nn.Module) -> Callable[..., Any]:
    """A forward that hands its states on."""

    def forward(*args: Any, **named: Any) -> Any:
        return _returned(block, *_given(block, args, named))

    return forward


@contextmanager
def in_place(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`block` with another forward."""
    before = block.__dict__.get("forward")
    block.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del block.forward
        else:
            block.forward = before  # type: ignore[method-assign]


def moves_together(rows: Tensor, before: Tensor | None) -> bool:
    """Whether the rows of a step are those of the step before, in their order."""
    return before is not None and torch.equal(rows, before)
