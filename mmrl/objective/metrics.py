"""What a run's outcomes say of a policy: pass@k, what it can still solve, how its answers spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from mmrl.errors import ConfigError


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from `correct` of `samples`: 1 - C(n-c, k)/C(n, k)."""
    if not 1 <= k <= samples:
        raise ConfigError(f"pass@{k} from {samples} samples: expected 1 <= k <= samples")
    if samples - correct < k:
        return 1.0
    return 1 - math.prod(1 - k / j for j in range(samples - correct + 1, samples + 1))


def support_metrics(preserved: int, expanded: int, shrunk: int) -> dict[str, float]:
    """How the set of solvable problems moved from the base to the tuned model at one sampling budget.

    preserved, expanded, shrunk  problems solved by both, by the tuned one only, by the base only

    SRR retention, NDR discovery, SDS their harmonic mean, NSCR the net change; 0/0 is 0. Source: "Invisible
    Leash" (2025), by third-party notes that agree.
    """

    def ratio(a: float, b: float) -> float:
        return a / b if b else 0.0

    retention, discovery = ratio(preserved, preserved + shrunk), ratio(expanded, preserved + expanded)
    return {
        "SRR": retention,
        "NDR": discovery,
        "SDS": ratio(2 * retention * discovery, retention + discovery),
        "NSCR": ratio(expanded - shrunk, preserved + expanded + shrunk),
    }


def answer_entropy(answers: Sequence[Hashable]) -> float:
    """Nats of the distribution of a group's answers; it can fall while token entropy rises."""
    return -sum(c / len(answers) * math.log(c / len(answers)) for c in Counter(answers).values())
