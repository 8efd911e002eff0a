"""Co-GRPO: how many tokens a step fixes, and at which temperature, is drawn by a policy of its own.

    log pi(trajectory) = sum_s [ log pi_phi(z_s | s) + sum_j log p_theta(y_j | canvas_s) ],   j: tokens that s fixes

z_s is a bin, tokens x temperatures. Which positions a step fixes is no draw: those of the surest prediction, before
their tokens are drawn, so that both factors are exact. phi is a table of logits, one row a step. Factorisation and
alternation are the authors' (arXiv 2512.22288, their page: temperature and re-mask ratio are actions of the schedule);
the table, its bins and the missing re-mask are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from mmrl.settings import Section

Logits = Callable[[Tensor], Tensor]
"""Canvas (B, T) to the logits (B, T, V) of its positions."""


class ScheduleConfig(Section):
    """What the second policy chooses from at each step.

    tokens        how many a step may fix, or all that its block has left
    temperatures  they may be drawn at, times `policy.temperature`
    rate          learning rate of the schedule in units of the model's: under Adam a logit moves about so many times
                  the learning rate in a step, and a table wants .01 to .1. With 10 it hardly moves
    alternate     rollout batches that train the model before as many train the schedule; 0 trains both at once, which
                  the authors found unstable
    """

    tokens: tuple[int, ...] = (1, 2, 4)
    temperatures: tuple[float, ...] = (0.7, 1.0)
    rate: float = Field(300.0, gt=0)
    alternate: int = Field(1, ge=0)

    def steps(self, length: int, block: int) -> int:
        """At most so many fill a canvas, block by block: the fewest tokens at each of them."""
        return sum(math.ceil(min(block, length - start) / min(self.tokens)) for start in range(0, length, block))

    @property
    def bins(self) -> list[tuple[int, float]]:
        return [(count, temperature) for count in self.tokens for temperature in self.temperatures]


@dataclass
class Filled:
    """tokens  (B, T); when (B, T) the step that fixed each; bins (B, S) what was chosen, -1 for steps that were not"""

    tokens: Tensor
    when: Tensor
    bins: Tensor


def fill(
    logits: Logits, table: Tensor, config: ScheduleConfig, blank: Tensor, block: int, token_noise: Tensor | None,
    bin_noise: Tensor | None,
) -> Filled:  # fmt: skip
    """Fill canvases by the schedule, block by block.

    table        (S, K) log-probs of the bins; blank (B, T) of mask tokens
    token_noise  (B, T) uniform numbers, one a position; bin_noise (B, S); None: the likeliest
    """
    canvas, hidden = blank.clone(), torch.ones_like(blank, dtype=torch.bool)
    when = torch.full_like(blank, -1)
    counts, temperatures = (torch.tensor(each, device=blank.device) for each in zip(*config.bins, strict=True))
    bins = torch.full((len(blank), len(table)), -1, device=blank.device)
    blocks = torch.arange(blank.shape[1], device=blank.device) // block
    for s in range(len(table)):
        live = hidden.any(1)
        if not bool(live.any()):
            break
        odds = table[s].exp().expand(len(blank), -1)
        chosen = odds.argmax(1) if bin_noise is None else _drawn(odds, bin_noise[:, s])
        bins[live, s] = chosen[live]
        found = logits(canvas)
        sure = found.softmax(-1).amax(-1)
        here = hidden & (blocks == torch.where(hidden, blocks, len(blocks)).amin(1, keepdim=True))
        rank = torch.where(here, -sure, torch.inf).argsort(dim=1, stable=True).argsort(1)
        fixed = here & (rank < counts[chosen][:, None])
        warm = (found / temperatures[chosen][:, None, None]).softmax(-1)
        drawn = warm.argmax(-1) if token_noise is None else _drawn(warm, token_noise)
        canvas, when = torch.where(fixed, drawn, canvas), torch.where(fixed, s, when)
        hidden = hidden & ~fixed
    return Filled(canvas, when, bins)


def token_log_probs(
    logits: Logits, config: ScheduleConfig, tokens: Tensor, when: Tensor, bins: Tensor, mask_token: int
) -> Tensor:
    """(B, T) log-prob of each token given the canvas of its step, at the temperature of its step; a pass a step."""
    temperatures = torch.tensor([temperature for _, temperature in config.bins], device=tokens.device)
    total = torch.zeros(tokens.shape, device=tokens.device)
    for s in range(int(when.max()) + 1):
        fixed = when == s
        warm = logits(torch.where((when >= 0) & (when < s), tokens, mask_token))
        warm = warm / temperatures[bins[:, s].clamp(min=0)][:, None, None]
        found = warm.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        total = total + torch.where(fixed, found, 0.0)
    return total


def bin_log_probs(table: Tensor, bins: Tensor) -> Tensor:
    """(B, S) log-prob of each choice under `table (S, K)`, 0 where none was made."""
    chosen = table.expand(len(bins), -1, -1).gather(2, bins.clamp(min=0)[..., None])[..., 0]
    return torch.where(bins >= 0, chosen, 0.0)


def _drawn(odds: Tensor, uniform: Tensor) -> Tensor:
    """The place at which the cumulative odds (..., V) pass the uniform number (...)."""
    steps = odds.double().cumsum(-1)
    found = torch.searchsorted(steps, uniform[..., None].to(steps) * steps[..., -1:])[..., 0]
    return found.clamp(max=odds.shape[-1] - 1)
