"""`training.compile`: the feed-forward parts of every block by torch.compile, in place.

They are where compiling is exact for certain: a tensor goes in and one comes out, whatever attends, caches, packs rows
or checkpoints around them. Names of weights stay, so checkpoints and adapters do not notice. Mixtures of experts choose
by data and stay as they are, which is said. Before the first step one part is compared with itself uncompiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mmrl.errors import ConfigError, PolicyError
from mmrl.shown import tell

FEED_FORWARD = ("mlp", "ff", "ff_context", "ffn", "feed_forward")
"""What transformers and diffusers call them in their blocks."""
TOLERANCE = {torch.float32: 1e-5}
COARSE = 3e-2
"""Largest difference over the largest output; below float32 the two round at other places."""


def compile_blocks(module: nn.Module) -> int:
    """Compile the feed-forward parts of the blocks that `module._no_split_modules` names; how many.

    Raises ConfigError where there are none, PolicyError where the compiled part finds something else.
    """
    found, left = [], 0
    for part in feed_forwards(module):
        if any("expert" in name for name, _ in part.named_modules()):
            left += 1
        else:
            found.append(part)
    if not found:
        named = ", ".join(getattr(module, "_no_split_modules", None) or ["none"])
        raise ConfigError(
            f"training.compile=true: no feed-forward part ({', '.join(FEED_FORWARD)}) in the blocks of this model "
            f"({named}){' but mixtures of experts' if left else ''}; leave it out"
        )
    if left:
        tell(f"training.compile: {left} mixtures of experts stay as they are, {len(found)} parts are compiled")
    _compare(found[0])
    for part in found:
        part.compile(dynamic=True)
    return len(found)


def feed_forwards(module: nn.Module) -> Iterator[nn.Module]:
    """Those of every block, each once."""
    kinds = set(getattr(module, "_no_split_modules", None) or ())
    for block in (m for m in module.modules() if type(m).__name__ in kinds):
        parts = (getattr(block, name, None) for name in FEED_FORWARD)
        yield from (part for part in parts if isinstance(part, nn.Module))


@torch.no_grad()
def _compare(part: nn.Module) -> None:
    weight = next(m for m in part.modules() if isinstance(m, nn.Linear)).weight
    x = torch.sin(torch.arange(8 * weight.shape[1], device=weight.device)).view(1, 8, -1).to(weight.dtype)
    plain, compiled = part(x), torch.compile(part, dynamic=True)(x)
    apart = float((plain - compiled).abs().max() / plain.abs().max().clamp(min=1e-30))
    allowed = TOLERANCE.get(weight.dtype, COARSE)
    if not apart <= allowed:
        raise PolicyError(
            f"training.compile: a compiled {type(part).__name__} is {apart:.1e} from the plain one, more than "
            f"{allowed:.0e}; leave training.compile out"
        )
