"""What a hint is worth: it should make answers right that stay likely without it."""

from __future__ import annotations

from torch import Tensor


def hint_reward(
    success: Tensor,
    bare: Tensor,
    hinted: Tensor,
    *,
    temperature: float = 0.3,
    form: str = "group",
    without: float | None = None,
) -> float:
    """HiLL's reward of one hint: `b exp(min(D, 0) / temperature)`.

    success  (n,) 1 or 0 of the hinted rollouts
    bare     (n,) mean log-prob of each response without the hint
    hinted   (n,) the same with it; D is the mean of bare - hinted over right rollouts: below 0 they rely on it
    form     group: b = 1 - p^n - (1 - p)^n, the chance of a mixed group; variance: b = p (1 - p)
    without  b of the prompt without a hint: a hint that does not beat it is worth 0

    0 where all or none are right. Source: the authors' code (Andree-9/HiLL, hinter_utils.py).
    """
    right, n = success > 0.5, len(success)
    p = right.double().mean().item()
    base = p * (1 - p) if form == "variance" else 1 - p**n - (1 - p) ** n
    if p in (0.0, 1.0) or (without is not None and base <= without):
        return 0.0
    reliance = (bare - hinted)[right].mean().clamp(max=0.0)
    return base * (reliance / temperature).exp().item()
