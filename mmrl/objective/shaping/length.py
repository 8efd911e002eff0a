"""Length shaping: what a long or a short answer costs."""

from __future__ import annotations

from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


@stage(
    "shaping",
    paper="DAPO, arXiv 2503.14476",
    formula="r + 0 up to L_max - L_buffer, falling linearly to r - penalty at L_max, r - penalty beyond",
    method="dapo",
    modalities=LANGUAGE,
)
def soft_overlong(
    batch: Batch, *, max_length: int | None = None, buffer_share: float = 0.2, penalty: float = 1.0
) -> Tensor:
    """Reward minus a penalty that grows over the last stretch before the length limit. (B,)

    max_length    of a response; None: the limit the policy samples with
    buffer_share  of `max_length` over which the penalty grows: .2 is the paper's 4,096 of 20,480
    penalty       at the limit and beyond, in reward units

    Source: arXiv 2503.14476, equation 13.
    """
    limit = max_length or batch.max_length
    if not limit:
        raise ConfigError("soft_overlong: give it max_length, since the batch does not say its length limit")
    if not 0 < buffer_share <= 1:
        raise ConfigError(f"soft_overlong: buffer_share={buffer_share}: expected a share above 0 and up to 1")
    buffer = buffer_share * limit
    overlong = (batch.length.to(batch.reward.dtype) - (limit - buffer)) / buffer
    return batch.reward - penalty * overlong.clamp(0, 1)
