"""A block cache: between neighbouring steps that train nothing, a transformer's later blocks change little.

    whole step    y = tail(b(x)),   r = y - b(x),   b the first block and tail all others
    reused step   y = b(x) + r,     r of the whole step before

The first block always runs. What a reused step finds is another velocity than the policy's, so no step that draws noise
is ever reused: log-probs hold by construction, and the self-check of a likelihood without log-probs is told of whole
steps only. Which steps are reused depends on the schedule alone, not on how much a batch changed, so that a rollout is
the same whoever shares its batch; caches that decide by a threshold (first-block cache, TeaCache) are not. Evaluation
reuses nothing. After HGC's abstract (arXiv 2511.11031): of its two grains the blocks', not that of cross-attention
maps; the steps and the share at the ends are ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.settings import Section

LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks")
"""What diffusers calls the lists of a transformer's blocks."""


class ReuseConfig(Section):
    """Which steps of a rollout reuse blocks.

    every  of so many neighbouring steps one is whole
    ends   share of the steps at either end that are always whole: there velocities change most
    """

    every: int = Field(2, ge=2)
    ends: float = Field(0.15, ge=0, lt=0.5)

    def reused(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` may reuse those before it. The one before a run of reused steps is whole."""
        low = max(1, round(self.ends * steps))
        return low <= step < steps - low and (step - low) % self.every < self.every - 1


class Blocks:
    """The blocks of a denoiser's transformers, their later ones' residuals kept from one whole step to the next.

    share  of the blocks that a reused call runs
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.lists = {name: blocks_of(module) for name, module in modules.items()}
        self.share = 1 / min(len(blocks) for blocks in self.lists.values())
        self.kept: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}
        self.calls: dict[str, int] = {}

    def knows(self, names: Iterable[str]) -> bool:
        """Whether the whole step before asked these transformers: experts take turns along the schedule."""
        return {name for name, _ in self.kept} >= set(names)

    @contextmanager
    def step(self, again: bool) -> Iterator[None]:
        """Transformers that run inside reuse what they found in the whole step before, call by call, or keep it."""
        self.calls = dict.fromkeys(self.lists, -1)
        if not again:
            self.kept = {}
        with ExitStack() as stack:
            for name, blocks in self.lists.items():
                first: list[Any] = [None]
                stack.enter_context(_in_place(blocks[0], self._head(name, blocks[0], first)))
                for block in blocks[1:-1]:
                    if again:
                        stack.enter_context(_in_place(block, _passing(block)))
                tail = self._reused(name, blocks[-1]) if again else self._noted(name, blocks[-1], first)
                stack.enter_context(_in_place(blocks[-1], tail))
            yield

    def _head(self, name: str, block: nn.Module, first: list[Any]) -> Callable[..., Any]:
        run = block.forward

        def forward(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            out = run(*args, **named)
            first[0] = _states(block, out)
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
def _in_place(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
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
