"""Length that is paid by the verdict: a right answer should be short, a wrong one should at least have tried."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.robust import scored, successes
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


def cosine_between(first: float, last: float, done: Tensor) -> Tensor:
    """From `first` at 0 to `last` at 1 and beyond, along half a cosine: flat at both ends. Shape of `done`."""
    return last + (first - last) * (1 + torch.cos(math.pi * done.clamp(0, 1))) / 2


@stage(
    "shaping",
    method="gazal_r1",
    paper="Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373; for Gazal-R1, arXiv 2506.21594",
    formula="r + w c(L / L_max), c from 1 to .5 if right, from -1 to -.5 if wrong, along half a cosine",
    confidence="partly",
    needs=("success",),
    modalities=LANGUAGE,
)
def cosine_length(
    batch: Batch,
    *,
    weight: float = 1.0,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    max_length: int | None = None,
) -> Tensor:
    """Short right answers earn more than long ones, long wrong answers lose less than short ones. (B,)

    weight      of the term
    right       what a right answer earns at length 0 and at `max_length`; both above those of `wrong`, or guessing pays
    wrong       the same of a wrong one
    max_length  in tokens; None: the limit the policy samples with. In your own loop a batch without it is refused

    Rows that no verifier judged keep their reward. Lengths beyond the limit count as the limit: the released code goes
    on along the cosine, which turns around there. Source: huggingface/open-r1, src/open_r1/rewards.py, its defaults;
    lengths there are characters.
    """
    limit = max_length or batch.max_length
    if not limit:
        raise ConfigError("cosine_length: the batch has no max_length; give it max_length, in tokens")
    if min(right) <= max(wrong):
        raise ConfigError(f"cosine_length: right {right} and wrong {wrong} overlap: a wrong answer would earn as much")
    if weight < 0:
        warnings.warn(f"cosine_length: weight={weight} pays for what it should cost", stacklevel=2)
    done = batch.length.to(batch.reward.dtype) / limit
    good = successes(batch, "cosine_length")
    term = torch.where(good, cosine_between(*right, done), cosine_between(*wrong, done))
    judged = scored(batch) & ~batch.success.isnan()  # type: ignore[union-attr]
    return torch.where(judged, batch.reward + weight * term, batch.reward)
