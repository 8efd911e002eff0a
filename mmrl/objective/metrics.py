"""What a run's outcomes say of a policy."""

from __future__ import annotations

import math

from mmrl.errors import ConfigError


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from `correct` of `samples`: 1 - C(n-c, k)/C(n, k)."""
    if not 1 <= k <= samples:
        raise ConfigError(f"pass@{k} from {samples} samples: expected 1 <= k <= samples")
    if samples - correct < k:
        return 1.0
    return 1 - math.prod(1 - k / j for j in range(samples - correct + 1, samples + 1))
