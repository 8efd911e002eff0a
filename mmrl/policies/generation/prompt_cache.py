"""HGC's finer grain: what a block takes from the text is kept between neighbouring steps that train nothing.

    a = softmax(Q K') V W,   Q of the picture, K and V of the text

The text does not change while a rollout is drawn, so to keep the map softmax(Q K') is to keep `a`, and the projections
are saved with it. Transformers with a cross-attention of their own have it (Wan, LTX-Video, SANA, Stable Audio, whose
`attn2` it is); in those that attend to picture and text at once (SD3, FLUX) there is no such map, and they are refused.
Steps that draw noise ask the text anew unless `reuse.drawn` says otherwise, and evaluation always does.

Source: arXiv 2511.11031 (HGC), its abstract: maps are reused within consecutive steps beside a cache of blocks. It is
made for U-Nets with a control module and fuses guided and unguided maps behind a gate step; here each pass has its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.policies.generation.reuse import in_place

TEXT = "attn2"
"""What diffusers calls the attention of a block to its text."""


class PromptCache:
    """The cross-attentions of a denoiser's transformers.

    kept   {(its name, which of its calls in a step): what it found when it was last asked}
    asked  how often one ran
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.parts = {
            f"{name}.{place}": part for name, module in modules.items() for place, part in module.named_modules()
            if place.rpartition(".")[2] == TEXT
        }  # fmt: skip
        if not self.parts:
            kinds = ", ".join(sorted({type(module).__name__ for module in modules.values()}))
            raise ConfigError(
                f"policy.reuse.text: {kinds} has no attention to the text alone, so there is no map of it to reuse; "
                "set policy.reuse.text=null"
            )
        self.kept: dict[tuple[str, int], Tensor] = {}
        self.asked = 0
        self._calls: Counter[str] = Counter()

    @contextmanager
    def step(self, again: bool) -> Iterator[None]:
        """Transformers that run inside take what they found of the text before, call by call, or keep it."""
        self._calls.clear()
        if not again:
            self.kept.clear()
        with ExitStack() as stack:
            for name, part in self.parts.items():
                stack.enter_context(in_place(part, self._kept(name, part)))
            yield

    def _kept(self, name: str, part: nn.Module) -> Callable[..., Any]:
        run = part.forward

        def forward(*args: Any, **named: Any) -> Any:
            call = name, self._calls[name]
            self._calls[name] += 1
            if call not in self.kept:  # nothing is kept of an expert that was not asked before
                self.kept[call] = run(*args, **named)
                self.asked += 1
            return self.kept[call]

        return forward
