"""Before the first update, training must see the probabilities the rollout was sampled with.

A gap here means that template, mask, position ids, temperature, guidance or dtype differ between the two:
training would go on silently and learn from noise. Rows sampled under a hint (`Request.shown`) have other
probabilities under the prompt they are trained on: they are counted, not compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmrl.errors import SelfCheckError


class Tolerance(NamedTuple):
    """What |new - old| may be at an action, and on average."""

    worst: float
    mean: float = math.inf

    @classmethod
    def of(cls, precision: torch.dtype, worst: float | None = None) -> Tolerance:
        """`worst` where it is given. Below float32 a single unlikely token may differ by tenths (a bfloat16 logit of
        30 is rounded to 1/8), so that a fault shows in the mean, or in a gap past any rounding."""
        if worst is not None:
            return cls(worst)
        return cls(1e-4) if precision == torch.float32 else cls(1.0, 0.03)

    def __str__(self) -> str:
        return f"{self.worst:.0e}" + ("" if self.mean == math.inf else f", mean {self.mean:.0e}")


@dataclass
class SelfCheck:
    """worst     largest |new - old| over comparable actions; rows and actions that were compared
    excluded  rows sampled under another prompt than they are trained on
    step      it was made in, from 0
    """

    worst: float
    mean: float
    rows: int
    actions: int
    tolerance: Tolerance
    table: str
    cause: str
    excluded: int = 0
    step: int = 0

    @property
    def passed(self) -> bool:
        return self.worst <= self.tolerance.worst and self.mean <= self.tolerance.mean

    def __str__(self) -> str:
        made = f"self-check of step {self.step + 1}" if self.step else "first-update self-check"
        if not self.actions:
            return f"{made}: nothing that was sampled is trained, so there is nothing to compare"
        verdict = "equal" if self.passed else "DIFFERENT"
        hinted = f"; {self.excluded} sampled under a hint were not compared" if self.excluded else ""
        return (
            f"{made}: rollout and training log-probs are {verdict}: worst gap {self.worst:.2e}, "
            f"mean {self.mean:.2e} over {self.actions} actions of {self.rows} rollouts "
            f"(tolerance {self.tolerance}){hinted}"
        )

    def raise_if_failed(self) -> None:
        if not self.passed:
            raise SelfCheckError(f"{self}\n{self.table}\nLikely cause: {self.cause}")


def compare(
    old: Tensor, new: Tensor, mask: Tensor, tolerance: Tolerance, *, shown: Tensor | None = None, worst_rows: int = 4
) -> SelfCheck:
    """old, new, mask (B, T): a verdict, the worst rows action by action, and the likely cause.

    shown  (B,) rows that were sampled under another prompt: left out
    """
    hinted = mask.new_zeros(len(mask)) if shown is None else shown.to(mask.device)
    mask = mask & ~hinted[:, None]
    gap = torch.where(mask, (new - old).abs(), torch.zeros_like(old))
    gap = torch.nan_to_num(gap, nan=float("inf"))
    actions = int(mask.sum())
    order = gap.amax(1).argsort(descending=True)[:worst_rows]
    lines = ["row  action    rollout   training        gap"]
    for row in order.tolist():
        for action in gap[row].argsort(descending=True)[:3].tolist():
            if mask[row, action]:
                values = (old[row, action].item(), new[row, action].item(), gap[row, action].item())
                lines.append(f"{row:3d}  {action:6d}  " + "  ".join(f"{v:9.4f}" for v in values))
    return SelfCheck(
        worst=gap.max().item() if actions else 0.0,
        mean=gap.sum().item() / max(actions, 1),
        rows=int(mask.any(1).sum()),
        actions=actions,
        tolerance=tolerance,
        table="\n".join(lines),
        cause=_likely_cause(old, new, gap, mask, tolerance.worst),
        excluded=int(hinted.sum()),
    )


def _likely_cause(old: Tensor, new: Tensor, gap: Tensor, mask: Tensor, tolerance: float) -> str:
    """Read the pattern of the gap: which rows, which positions, which direction."""
    if not mask.any():
        return ""
    if not torch.isfinite(new[mask]).all():
        return "training log-probs are not finite: a masked token was sampled, or the model overflows in this dtype"
    bad = (gap > tolerance) & mask
    bad_rows, rows = bad.any(1), mask.any(1)
    if bad_rows.any() and bad_rows.sum() < rows.sum() / 2:
        return (
            f"only {int(bad_rows.sum())} of {int(rows.sum())} rollouts differ: their media or padding reached the "
            "two passes differently (image order, grids, a row without media)"
        )
    first = mask & (mask.cumsum(1) == 1)
    if bad[first].any() and not bad[mask & ~first].any():
        return "only the first action differs: the boundary between prompt and response is off by one"
    old_spread, new_spread = old[mask].std(), new[mask].std()
    if old_spread > 0 and ((new_spread / old_spread) - 1).abs() > 0.1:
        return "log-probs differ in scale: temperature, guidance scale or noise level differ between the two passes"
    columns = mask.any(0)
    half = int(columns.sum()) // 2
    if half and gap[:, half:].sum() > 4 * gap[:, :half].sum():
        return (
            "the gap grows along the action axis: position ids (mrope, timestamps) differ, or stored latents were "
            "rounded (use float32 or float16 latents)"
        )
    if gap[mask].mean() < 0.05:
        return "a small gap everywhere: different dtype, attention backend or batch composition between the passes"
    return "the prompt differs: template, special tokens, media tensors or the guidance of the two passes"
